"""Where components are whose classes were elsewhere: configs of users name them."""

_MOVED = {
    "stun_exp.cache.CacheFolder": "stun_exp.state.cache.CacheFolder",
    "stun_exp.cache.NoCache": "stun_exp.state.cache.NoCache",
    "stun_exp.calibration.C4": "stun_exp.calibration.c4.C4",
    "stun_exp.calibration.LocalText": "stun_exp.calibration.local.LocalText",
    "stun_exp.calibration.ToyText": "stun_exp.calibration.toy.ToyText",
    "stun_exp.calibration_pairs.Pairs": "stun_exp.calibration.pairs.Pairs",
    "stun_exp.evaluation.Benchmark": "stun_exp.evaluation.benchmarks.Benchmark",
    "stun_exp.evaluation.LMEval": "stun_exp.evaluation.benchmarks.LMEval",
    "stun_exp.evaluation.NoEvaluation": "stun_exp.evaluation.benchmarks.NoEvaluation",
    "stun_exp.expert_pruner.exhaustive.Exhaustive": "stun_exp.expert_pruner.reconstruction.exhaustive.Exhaustive",
    "stun_exp.expert_pruner.greedy_reconstruction.GreedyReconstruction": (
        "stun_exp.expert_pruner.reconstruction.greedy_reconstruction.GreedyReconstruction"
    ),
    "stun_exp.expert_pruner.stun.STUN": "stun_exp.expert_pruner.stun.stun.STUN",
    "stun_exp.expert_pruner.subset_search.SubsetSearch": (
        "stun_exp.expert_pruner.reconstruction.subset_search.SubsetSearch"
    ),
    "stun_exp.model.Model": "stun_exp.checkpoint.model.Model",
    "stun_exp.streaming.Streaming": "stun_exp.streaming.settings.Streaming",
    "stun_exp.tracking.NoTracker": "stun_exp.tracker.none.NoTracker",
    "stun_exp.tracking.WandB": "stun_exp.tracker.wandb.WandB",
}


def moved_to(target: str) -> str | None:
    """The class path that a former one is now; None for one that has not moved."""
    return _MOVED.get(target)
