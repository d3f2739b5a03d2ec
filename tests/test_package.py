"""What a stranger installs: the wheel, the lazy import, the README's own code."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import zoo

ROOT = Path(__file__).parents[1]


def run(*command, **options):
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


def test_importing_zoo_imports_nothing_heavy():
    code = "import sys, zoo; print([m for m in ('torch', 'timm', 'lightning', 'numpy') if m in sys.modules])"
    assert run(sys.executable, "-c", code).stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = zoo.nothing
    assert all(hasattr(zoo, name) for name in dir(zoo))


def test_the_wheel_holds_recipes_cards_and_plans_and_runs_from_another_folder(tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    source = tmp_path / "source"  # built from a copy: setuptools leaves build/ behind
    _copy(source)
    built = run(*pip, "wheel", "--no-deps", "--wheel-dir", str(tmp_path / "wheel"), str(source))
    assert built.returncode == 0, built.stderr
    wheel = next((tmp_path / "wheel").glob("visionzoo-*.whl"))
    installed = run(*pip, "install", "--no-deps", "--target", str(tmp_path / "site"), str(wheel))
    assert installed.returncode == 0, installed.stderr

    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    listed = run(str(tmp_path / "site/bin/zoo"), "list", "recipes", cwd=tmp_path, env=env)
    assert "segmentation/pranet_folder" in listed.stdout, listed.stderr
    where = run(sys.executable, "-c", "import zoo; print(zoo.__file__)", cwd=tmp_path, env=env).stdout
    assert where.startswith(str(tmp_path / "site"))
    code = "from zoo.encoders import plans; print(plans.__file__, plans.shipped('resnet34', {}).channels)"
    known = run(sys.executable, "-c", code, cwd=tmp_path, env=env)
    assert known.stdout.startswith(str(tmp_path / "site")), known.stderr
    assert "(64, 64, 128, 256, 512)" in known.stdout
    for name in ("pranet", "segmentation/demo", "camvid"):
        shown = run(sys.executable, "-m", "zoo", "show", name, cwd=tmp_path, env=env)
        assert shown.returncode == 0, shown.stderr
        assert shown.stdout


def _copy(to):
    names = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).stdout.split("\n")
    for name in filter(None, names):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "benchmarks/", "docs/")):
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            (to / name).write_bytes((ROOT / name).read_bytes())


def test_the_readmes_decoder_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    code = next(block for block in blocks if "register_decoder" in block)
    done = run(sys.executable, "-c", code + "\nprint(model.config['decoder'])")
    assert done.returncode == 0, done.stderr
    assert "'dropout': 0.1" in done.stdout
