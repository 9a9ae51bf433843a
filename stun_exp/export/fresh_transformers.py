"""A program, run in a process of its own: the logits of a model folder by transformers, without this package.

Its argument is a JSON object: `folder`, `batch` (what the model is called with), `auto` (the class that loads it),
`trust_remote_code`, `device`, `scratch` (for what memory does not hold) and `out`, the file for the logits.
"""

import json
import sys
from typing import Any

import torch
import transformers


def main(job: dict[str, Any]) -> None:
    sys.modules["stun_exp"] = None  # type: ignore[assignment]  # an ImportError for whoever needs it
    placement = {"device_map": "auto", "offload_folder": job["scratch"]} if job["device"] == "cuda" else {}
    auto = getattr(transformers, job["auto"])
    model = auto.from_pretrained(job["folder"], dtype="auto", trust_remote_code=job["trust_remote_code"], **placement)
    batch = {name: torch.tensor(ids, device=model.device) for name, ids in job["batch"].items()}
    with torch.inference_mode():
        torch.save(model.eval()(**batch).logits.cpu(), job["out"])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
