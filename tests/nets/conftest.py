import torch

torch.set_num_threads(1)  # more threads on such small tensors are far slower
