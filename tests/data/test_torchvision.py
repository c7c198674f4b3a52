"""torchvision imports beside any torch. Each case needs an interpreter of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from depthlab import _torchvision
from depthlab._torchvision import import_torchvision


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)


def fake(folder: Path, body: str) -> str:
    """Code that puts a package torchvision with this body before the installed one."""
    package = folder / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(body)
    (package / "extension.py").write_text("")
    return f"import sys; sys.path.insert(0, {str(folder)!r})\n"


def test_everything_but_the_extension_is_there_even_after_an_import_that_failed():
    done = run(
        "try:\n    import torchvision\nexcept RuntimeError:\n    pass\n"
        "import torch\n"
        "from depthlab._torchvision import import_torchvision\n"
        "torchvision = import_torchvision()\n"
        "assert import_torchvision() is torchvision and torchvision.extension\n"
        "assert torchvision.models.resnet18().eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)\n"
        "assert torchvision.datasets.MNIST.resources and torchvision.transforms.ToTensor()\n"
    )
    assert done.returncode == 0, done.stderr


def test_operators_are_declared_only_where_the_import_fails_without_them(tmp_path):
    """A torchvision whose extension can be loaded declares them itself; a second declaration would be an error."""
    healthy = fake(
        tmp_path,
        "import torch\nlibrary = torch.library.Library('torchvision', 'DEF')\n"
        "library.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')\n",
    )
    done = run(
        healthy + "from depthlab._torchvision import import_torchvision\n"
        "import torch\n"
        "assert import_torchvision().library\n"
        "assert hasattr(torch.ops.torchvision, 'nms') and not hasattr(torch.ops.torchvision, 'qnms')\n"
    )
    assert done.returncode == 0, done.stderr


def test_the_trap_is_passed(tmp_path):
    """A torchvision that gives shape rules to operators nobody declared, as the CUDA build does beside a CPU torch."""
    trapped = fake(
        tmp_path,
        "import torch\nimport torchvision.extension\n"
        "for name in ('nms', 'qnms'):\n"
        "    torch.library.register_fake(f'torchvision::{name}')(lambda dets, scores, iou_threshold: dets)\n",
    )
    done = run(
        trapped + "try:\n    import torchvision\n"
        "except RuntimeError as error:\n    assert 'operator torchvision::nms does not exist' in str(error)\n"
        "else:\n    raise AssertionError('this is no trap')\n"
        "from depthlab._torchvision import import_torchvision\n"
        "torchvision = import_torchvision()\n"
        "assert torchvision.extension and sys.modules['torchvision'] is torchvision\n"
    )
    assert done.returncode == 0, done.stderr


def test_what_an_import_that_failed_has_left_is_forgotten_and_nothing_else(tmp_path):
    """Python binds a submodule that is there to no package anew; others' names may begin alike."""
    late = fake(
        tmp_path,
        "import os\nimport torchvision.extension\nif 'READY' not in os.environ:\n    raise RuntimeError('wait')\n",
    )
    done = run(
        late + "try:\n    import torchvision\n"
        "except RuntimeError as error:\n    assert str(error) == 'wait'\n"
        "assert 'torchvision.extension' in sys.modules\n"
        "import os\n"
        "os.environ['READY'] = '1'\n"
        "sys.modules['torchvisionary'] = sys\n"
        "from depthlab._torchvision import import_torchvision\n"
        "assert import_torchvision().extension\n"
        "assert 'torchvisionary' in sys.modules\n"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        ("raise RuntimeError('operator torchvision::x is missing')", ImportError, "the installed torchvision does not"),
        ("raise RuntimeError('something else')", RuntimeError, "something else"),
        ("raise ModuleNotFoundError('no PIL')", ModuleNotFoundError, "no PIL"),
    ],
)
def test_other_faults_are_not_hidden(body, kind, message, tmp_path, monkeypatch):
    fake(tmp_path, body)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "modules", {n: m for n, m in sys.modules.items() if not n.startswith("torchvision")})
    monkeypatch.setattr(_torchvision, "_declare_operators", lambda: None)
    with pytest.raises(kind, match=message):
        import_torchvision()


def test_importing_the_room_imports_nothing_heavy():
    done = run(
        "import sys, depthlab.data\n"
        "print({'torchvision', 'sklearn', 'pandas', 'filelock', 'matplotlib'} & set(sys.modules))"
    )
    assert done.stdout.strip() == "set()", done.stdout + done.stderr
