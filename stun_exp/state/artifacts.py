"""The files that a run leaves in its folder, and the version of their form."""

SCHEMA = 3
"""Of report.json: one more whenever a reader of older reports would go wrong."""
JOURNAL = "journal.jsonl"
REPORT = "report.json"
LOG = "run.log"
CHECKPOINT = "checkpoint"
STRUCTURED = "structured"
"""What the structured pruner leaves of the model, for the stages after it."""
SHOTS = "shots"
"""What a structured pruner's earlier shots leave of the model, until the next has been."""
RECOVERY = "recovery/state.pt"
ARTIFACTS = (
    *("config.yaml", "metrics.json", "plan.json", REPORT, "retained_experts.json", "sparsity.json", LOG, RECOVERY),
    *("samples.jsonl", "baseline_samples.jsonl", "expert_ranking.jsonl"),
)
"""What a run writes in its folder, besides the checkpoint, the journal and the files that explain a plan."""
