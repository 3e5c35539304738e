"""A run that has markup wherever its text comes from the data or the user."""

from __future__ import annotations

import copy
from typing import Any

from digit_runs import NAMES

EVIL = "<script>alert(1)</script>"
FILE = """a "quoted" 'name' </script><img src=x onerror=alert(2)> %{x} &lt;b&gt;.png"""


def hostile(run: Any) -> Any:
    """The same run with markup wherever its text comes from the data or the user."""
    run = copy.deepcopy(run)
    run["class_names"] = [EVIL, *NAMES[1:]]
    run["name"] = f"run {EVIL}"
    run["config"][f"<i>{EVIL}"] = FILE
    run["environment"][EVIL] = {"nested": [EVIL]}
    run["events"]["warnings"].append({"step": 3, "message": f"{EVIL} is a class"})
    run["events"]["end"] = EVIL
    for step in run["events"]["steps"]:
        step["terms"][EVIL] = 1.0 + 0.01 * step["step"]
    for look in run["events"]["looks"]:
        look["metrics"][FILE] = 0.5
    run["evaluation"]["metrics"].append({"name": EVIL, "value": 0.5, "about": FILE})
    run["evaluation"]["about"] = EVIL
    for k, item in enumerate(run["map"]["items"]):
        item["name"] = f"{k} {FILE}"
    del run["map"]["items"][3]["thumbnail"]
    run["map"]["items"][3]["text"] = EVIL
    run["gallery"][0]["item"] = {"name": FILE, "text": EVIL}
    run["gallery"][1]["neighbours"][0]["item"] = {"name": "<b>short</b>", "label": 0}
    run["roc"]["about"] = run["confusion"]["by"] = EVIL
    return run
