"""The watcher in the trainers of others: a module for each, that imports it. `pip install depthlab[adapters]`."""
