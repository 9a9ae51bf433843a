"""A program for a Python that has mlx-lm: the log-probabilities of texts, and what follows prompts, token by token.

Its argument is a JSON object: `folder`, `texts` and `prompts` (token ids), `length` (tokens to generate) and `out`.
"""

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any


def main(job: dict[str, Any]) -> None:
    import mlx.core as mx  # type: ignore[import-not-found,unused-ignore]
    from mlx_lm.generate import generate_step  # type: ignore[import-not-found,unused-ignore]
    from mlx_lm.utils import load_model  # type: ignore[import-not-found,unused-ignore]

    model, _ = load_model(Path(job["folder"]))
    model.set_dtype(mx.float32)  # on a CPU its products of experts are in 32 bits alone
    scores = []
    for ids in job["texts"]:
        logits_TV = model(mx.array([ids]))[0].astype(mx.float32)
        own = mx.take_along_axis(logits_TV[:-1], mx.array(ids[1:])[:, None], axis=-1)[:, 0]
        scores.append((own - mx.logsumexp(logits_TV[:-1], axis=-1)).tolist())
    greedy = [
        [int(token) for token, _ in generate_step(mx.array(ids), model, max_tokens=job["length"])]
        for ids in job["prompts"]
    ]
    versions = {name: importlib.metadata.version(name) for name in ("mlx", "mlx-lm", "transformers")}
    Path(job["out"]).write_text(json.dumps({"scores": scores, "greedy": greedy, "versions": versions}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
