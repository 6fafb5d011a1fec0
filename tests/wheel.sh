#!/bin/sh
# Runs a sweep with a wheel outside of the checkout, in an environment that contains only the packages that the wheel declares.
# Usage: wheel.sh PYTHON ENVIRONMENT WHEEL, with the Python of an environment in which its requirements are installed.
set -eu
python=$1 environment=$2 wheel=$(realpath "$3")
"$python" "$(dirname "$0")/wheel_environment.py" "$environment" "$wheel"
cd "$environment"
unset PYTHONPATH
cat >spec.yaml <<'SPEC'
name: wheel
dataset: {name: digits, validation: 100, options: {limit: 400}}
teachers:
  big: {model: mlp, hidden: [64], train: {epochs: 2}}
students: [lenet]
methods: {kd: defaults}
search: {trials_per_method: 1, max_epochs: 2}
SPEC
bin/stillhouse --version
bin/stillhouse methods --json >methods.json
bin/stillhouse sweep spec.yaml --home home --json >first.json
bin/stillhouse sweep spec.yaml --home home --json >second.json
bin/stillhouse sweep "$(bin/python -c 'import stillhouse, pathlib; print(pathlib.Path(stillhouse.__file__).parent / "search_spaces/quickstart.yaml")')" \
  --home home --dry-run >/dev/null
bin/python - <<'CHECK'
import json, pathlib, sys
import stillhouse
assert pathlib.Path(sys.prefix) in pathlib.Path(stillhouse.__file__).parents, stillhouse.__file__
assert {"scratch", "kd"} <= {method["name"] for method in json.load(open("methods.json"))}
first, second = (json.load(open(name)) for name in ("first.json", "second.json"))
assert first["status"] == second["status"] == "finished", (first, second)
assert first["trials"] == {"planned": 2, "finished": 2, "failed": 0, "reused": 0}, first["trials"]
assert second["trials"]["reused"] == 2 and second["teachers"][0]["samples_forwarded"] == 0, second
assert pathlib.Path(first["report"]["page"]).stat().st_size > 10_000
print("the wheel works: ", first["trials"], first["teachers"])
CHECK
