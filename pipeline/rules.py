"""How candidates of a source are chosen, by what was committed before its first part."""

from pipeline.config.schema import SelectionConfig
from pipeline.dataset import manifest
from pipeline.dataset.metadata import ReferenceInfo, SourcePlan
from pipeline.steps.select import SelectionRule


def read_rule(root: str, source: str, selection: SelectionConfig) -> SelectionRule:
    plan = manifest.read_plan(root, source)
    assert plan is not None, f"no plan is committed for {source}"
    reference = manifest.read_reference_info(root)
    assert reference is not None
    return rule_of(plan, reference, selection)


def rule_of(
    plan: SourcePlan, reference: ReferenceInfo, selection: SelectionConfig
) -> SelectionRule:
    return SelectionRule(
        scale=plan.scale,
        beta=selection.effective_beta,
        offset=reference.median,
        min_probability=selection.min_probability,
        eval_probability=plan.eval_probability,
        seed=selection.seed,
        near=reference.near,
        ceiling=reference.ceiling if selection.quarantine == "auto" else None,
    )
