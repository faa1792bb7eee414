"""Look into the wheel and the source archive, install each by itself, and run its demo: ``make dist`` calls this.

Depends on the standard library only.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
BESIDE_THE_CODE = {"py.typed", "job/templates/report.html"}
OF_THE_SOURCE = {".gitignore", "CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}
RESULTS = ("report.html", "velocity_stream.png", "macrostates.png", "fate_map.png")


def contents(archive: Path) -> set[str]:
    """Return the files in an archive, without the folder that a source archive has around them."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return {name for name in wheel.namelist() if ".dist-info/" not in name}
    with tarfile.open(archive) as source:
        return {member.name.partition("/")[2] for member in source.getmembers() if member.isfile()}


def expected(archive: Path) -> set[str]:
    """Return the files that git has of the package, and what goes with the source."""
    listed = subprocess.run(
        ["git", "ls-files", "cellrank_velot"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    for name in listed:
        beside = name.removeprefix("cellrank_velot/")
        if not name.endswith(".py") and beside not in BESIDE_THE_CODE:
            raise SystemExit(f"{name} is no code, and not expected in the package.")
    return set(listed) | (set() if archive.suffix == ".whl" else OF_THE_SOURCE)


def try_it(archive: Path) -> None:
    """Install it into an environment of its own, and run the demo far from the checkout."""
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder) / "env" / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", Path(folder) / "env"], check=True)
        pip = [python, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet"]
        constraints = ["--constraint", ROOT / ".constraints.txt"]
        if subprocess.run([*pip, *constraints, "torch"], check=False).returncode:
            print("The torch of .constraints.txt is not to be had here; going on with the one that pip finds.")
        subprocess.run([*pip, archive], check=True)
        command = [python.with_name("cellrank-velot"), "demo", "--out", "demo"]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        missing = [name for name in RESULTS if not list((Path(folder) / "demo").rglob(name))]
        if missing:
            raise SystemExit(f"{archive.name} runs, but its demo has no {missing}.")


def main() -> None:
    """Check every archive of a folder."""
    archives = sorted(Path(sys.argv[1]).resolve().iterdir())
    if [archive.suffix for archive in archives] != [".whl", ".gz"]:
        raise SystemExit(f"Expected a wheel and a source archive, found {[a.name for a in archives]}.")
    for archive in archives:
        found, wanted = contents(archive), expected(archive)
        if found != wanted:
            raise SystemExit(f"{archive.name}: has {sorted(found - wanted)} too much, lacks {sorted(wanted - found)}.")
        print(f"{archive.name}: {len(found)} files, {archive.stat().st_size / 1000:.0f} kB, none too many", flush=True)
        try_it(archive)
        print(f"{archive.name}: installs, and its demo runs", flush=True)


if __name__ == "__main__":
    main()
