"""Everything that a page needs besides its content: templates, style, script, policy, plotly."""

import base64
import functools
import gzip
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

from stillhouse.report import formatting as wording
from stillhouse.spec.metric import Metric

_TEMPLATES = Path(__file__).parent / "templates"
_SHORT_AXES = {
    "parameters": "parameters",
    "size_bytes": "bytes",
    "macs": "MACs",
    "latency_ms": "latency",
    "train_hours": "training time",
}


def shared_context(figures: Mapping[str, Any], metric: Metric) -> dict[str, Any]:
    """What every page of the report needs besides its content: script, policy, style, plotly, the figures, the metric."""
    script = (_TEMPLATES / "page.js").read_text(encoding="utf-8")
    return {
        "metric": metric,
        "figures": _script_json(figures),
        "plotly": _packed_plotly()[0],
        "js": script,
        "css": (_TEMPLATES / "page.css").read_text(encoding="utf-8"),
        "policy": _policy(script),
        "axes": list(_SHORT_AXES.items()),
    }


def environment() -> jinja2.Environment:
    """The templates with the filters that they use."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "percent": wording.percent,
        "score": wording.score,
        "difference": wording.difference,
        "short": wording.short,
        "size": wording.size,
        "milliseconds": wording.milliseconds,
        "score_range": wording.score_range,
        "setting": wording.value_text,
        "without_interval": wording.without_interval,
    }
    return environment


def _policy(script: str) -> str:
    """No network, and only the page's own two scripts: any other script that gets into the page does not run."""
    hashes = " ".join(f"'{_script_hash(text)}'" for text in (script, _packed_plotly()[1]) if text)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; font-src data:; "
        "form-action 'none'; base-uri 'none'"
    )


def _script_hash(text: str) -> str:
    return text if text.startswith("sha256-") else f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


@functools.cache
def _packed_plotly() -> tuple[str, str]:
    """Plotly's library, gzipped in base64, and the hash that the page's policy lets it run by."""
    source = get_plotlyjs()
    packed = base64.b64encode(gzip.compress(source.encode(), mtime=0)).decode()
    return packed, _script_hash(source)


def _script_json(value: Any) -> str:
    """JSON that is safe inside a script element: no `<` that could end it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
