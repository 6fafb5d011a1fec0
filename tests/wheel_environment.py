"""Makes an environment that contains a wheel, its declared requirements, and their requirements; nothing else.

Run it with the Python of an environment in which all of them are installed; their packages are linked, not installed again:
`python wheel_environment.py ENVIRONMENT WHEEL`. A requirement that the wheel does not declare is missing there.
"""

import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement


def needed(requirements: Iterable[str]) -> dict[str, Distribution]:
    """All distributions that these requirements need, directly or through others, by name."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(Requirement(each), "") for each in requirements]
    while waiting:
        requirement, asked_by = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": asked_by}):
            continue
        dist = distribution(requirement.name)
        if not requirement.specifier.contains(dist.version, prereleases=True):
            raise SystemExit(f"{requirement} is required, but {dist.version} is installed: run make setup")
        found[dist.name] = dist
        for extra in ("", *requirement.extras):
            if (dist.name, extra) not in seen:
                seen.add((dist.name, extra))
                waiting += [(Requirement(each), extra) for each in dist.requires or ()]
    return found


def main() -> None:
    environment, wheel = (Path(argument).resolve() for argument in sys.argv[1:])
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    paths = sysconfig.get_paths(vars={"base": str(environment), "platbase": str(environment)})
    (installed,) = Distribution.discover(name="stillhouse", path=[paths["purelib"]])
    for dist in needed(installed.requires or ()).values():
        for top in {file.parts[0] for file in dist.files or ()} - {"..", "__pycache__"}:
            link = Path(paths["purelib"], top)
            if not link.exists():
                link.symlink_to(Path(str(dist.locate_file(top))))
    subprocess.run([*pip, "check"], check=True)


if __name__ == "__main__":
    main()
