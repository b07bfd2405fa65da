"""The methods beside what their authors' released code gives for the same inputs (shared/golden/rivals).

`python -m tests.support.released` prints the table of docs/results/released_code.md.
"""

from collections.abc import Callable, Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.binary_cross_entropy import binary_cross_entropy
from losses.decomposed_distillation import reasoning_scores
from losses.unbiased import unbiased_cross_entropy
from methods import METHODS, Output
from methods.base import Looks
from methods.dkd import DKD
from models import SegmentationModel, SegOutput
from models.classifier import GrowingClassifier, join_unknown
from models.output import most_likely, upsample
from tests.support.beside import (
    Arrays,
    Compared,
    LooksAt,
    Pair,
    cast_inputs,
    every_pixel,
    gradients,
    loss_terms,
    method_of,
    output_of,
)
from tests.support.golden import load_rival
from tests.support.paths import GOLDEN
from tests.support.released_mbs import mbs_decoder, mbs_step
from utils.labels import SALIENT

RIVALS = GOLDEN / "rivals"


def plop_pod(arrays: Arrays, dtype: torch.dtype) -> Compared:
    x, compared = cast_inputs(arrays, dtype), {}
    logits, old_logits = x["grid_logits"], x["old_grid_logits"]
    stages = [f"stage{i}" for i in range(4)]
    output, old = (
        output_of(
            grid, grid_logits=grid, features=x[f"{of}features"], stages=tuple(x[of + name] for name in stages)
        )
        for of, grid in (("", logits), ("old_", old_logits))
    )
    labels = torch.zeros(len(logits), *logits.shape[2:], dtype=torch.int64)
    for data_set in ("voc", "ade"):
        factor = float(arrays[f"const_factor_{data_set}"])
        logit_weight = float(arrays[f"const_logits_factor_{data_set}"])
        weights = {"stage_weight": factor, "feature_weight": factor, "logit_weight": logit_weight}
        method = method_of("plop", arrays, **weights)
        method.state["thresholds"] = torch.ones(method.num_old, dtype=dtype)
        loss = loss_terms(method, labels, output, old)["local_pod"]
        compared[f"Local POD, {data_set}"] = Pair(loss, arrays[f"out_loss_{data_set}"])
        for name, gradient in gradients(loss, x, [*stages, "features", "grid_logits"]):
            theirs = arrays[f"out_grad_{name}_{data_set}"]
            compared[f"Local POD, {data_set}: gradient, {name}"] = Pair(gradient, theirs)
    return compared


def plop_pseudo(arrays: Arrays, dtype: torch.dtype) -> Compared:
    x, method = cast_inputs(arrays, dtype), method_of("plop", arrays)
    method.state["thresholds"] = arrays["in_thresholds_normalised"].to(dtype)
    output, old = output_of(x["logits"]), output_of(x["old_logits"])
    targets = method.targets(x["labels"], cast(Output, old))
    loss = loss_terms(method, x["labels"], output, old)["cross_entropy"]
    ((_, gradient),) = gradients(loss, x, ["logits"])
    return {
        "pseudo-labels": Pair(targets.pseudo_labels, arrays["out_pseudo_labels"]),
        "factors of images": Pair(targets.own["weights"][:, 0, 0], arrays["out_adaptive_factor"]),
        "cross-entropy": Pair(loss, arrays["out_ce_loss"]),
        "cross-entropy: gradient": Pair(gradient, arrays["out_grad_ce_logits"]),
    }


def plop_median(arrays: Arrays, dtype: torch.dtype) -> Compared:
    x, method = cast_inputs(arrays, dtype), method_of("plop", arrays)
    old = output_of(x["old_logits"].detach())
    method.begin_step(cast(SegmentationModel, None), cast(Looks, LooksAt(x["labels"], old)))
    thresholds = method.state["thresholds"]
    is_background = x["labels"] == 0
    is_taken = method.targets(x["labels"], cast(Output, old)).pseudo_labels[is_background] != 255
    share = is_taken.double().mean()
    return {
        "thresholds": Pair(thresholds, arrays["out_thresholds_normalised"][: method.num_old]),
        "share of background accepted": Pair(share, arrays["out_share_accepted_official"]),
    }


def dkd(arrays: Arrays, dtype: torch.dtype) -> Compared:
    x, labels = cast_inputs(arrays, dtype), arrays["in_labels"]
    size, num_new = labels.shape[1:], int(arrays["const_num_new"])
    num_old = 1 + int(arrays["const_num_old_foreground"])

    def output_by(features: Tensor, parts: list[str]) -> SegOutput:
        """What the model says by these rows; that of background is zero."""
        zero = features.new_zeros(1, features.shape[1])
        tokens = torch.cat([zero, *(x[f"{part}_weight"] for part in parts)])
        bias = torch.cat([zero[0, :1], *(x[f"{part}_bias"] for part in parts)])
        grid = F.conv2d(features, tokens[:, :, None, None], bias)
        return output_of(upsample(grid, size), grid_logits=grid, features=features, class_tokens=tokens)

    output, old = output_by(x["features"], ["old", "new"]), output_by(x["old_features"], ["prev_old"])
    options = DKD.Options(void_is_negative=True, positive_weight=float(arrays["const_pos_weight"]))
    method = DKD(options, num_old, num_new)
    row = nn.Conv2d(x["features"].shape[1], 1, 1, dtype=dtype)
    method.modules["auxiliary"] = row
    with torch.no_grad():
        row.weight.copy_(x["aux_weight"][:, :, None, None])
        assert row.bias is not None
        row.bias.copy_(x["aux_bias"])
    terms = loss_terms(method, labels, output, old)
    constants = arrays["const_weights_mbce_kd_dkdpos_dkdneg_ac"].tolist()
    weights = dict(zip(("mbce", "kd", "dkd", "dkd_neg", "ac"), constants, strict=True))
    parts = {
        "mbce": terms["cross_entropy"] / weights["mbce"],
        "kd": terms["output_distillation"] / weights["kd"],
        "dkd": terms["decomposed_distillation"] / weights["dkd"],
        "ac": terms["auxiliary"] / weights["ac"],
        "total": torch.stack(list(terms.values())).sum(),
    }
    scores, old_scores = (reasoning_scores(y.features, y.class_tokens[1:]) for y in (output, old))
    asked = method.targets(labels, cast(Output, old)).pseudo_labels
    of_pixels = torch.stack(
        [
            every_pixel(
                lambda z, y: binary_cross_entropy(z, y, 255, None, 1, method.positive_weight)[0],
                output.logits[:, [0, c]],
                (asked == c).long(),
            )
            for c in range(num_old, num_old + num_new)
        ],
        dim=1,
    )
    both = arrays["out_dkd_pos_sum"] + arrays["out_dkd_neg_sum"]
    compared = {
        "logits": Pair(output.logits[:, 1:], arrays["out_logits"][:, 1:]),
        "logits of the old model": Pair(old.logits[:, 1:], arrays["out_old_logits"][:, 1:]),
        "prediction": Pair(most_likely(output.grid_logits, size), arrays["out_prediction"]),
        "what speaks for a class": Pair(scores[0], arrays["out_pos_scores"]),
        "what speaks against a class": Pair(scores[1], arrays["out_neg_scores"]),
        "what speaks for a class, old model": Pair(old_scores[0], arrays["out_old_pos_scores"]),
        "what speaks against a class, old model": Pair(old_scores[1], arrays["out_old_neg_scores"]),
        "cross-entropy of every pixel": Pair(of_pixels, arrays["out_mbce_map"]),
        "cross-entropy": Pair(parts["mbce"], arrays["out_mbce_sum"]),
        "distillation of scores": Pair(parts["kd"], arrays["out_kd_sum"]),
        "decomposed distillation": Pair(parts["dkd"], both),
        "auxiliary": Pair(parts["ac"], arrays["out_ac"]),
        "total": Pair(parts["total"], arrays["out_total"], through_single=True),
    }
    named = {"mbce": "cross-entropy", "kd": "distillation of scores", "dkd": "decomposed distillation"}
    named |= {"ac": "auxiliary", "total": "total"}
    auxiliary = {"aux_weight": row.weight, "aux_bias": row.bias}
    for part, loss in parts.items():
        known = {name: y for name, y in {**x, **auxiliary}.items() if f"out_grad_{part}_{name}" in arrays}
        for name, gradient in gradients(loss, known, list(known)):
            theirs = arrays[f"out_grad_{part}_{name}"]
            if name == "features":  # a ReLU lies before them
                gradient, theirs = (torch.where(x["features"] > 0, y, 0) for y in (gradient, theirs))
            pair = Pair(gradient.view_as(theirs), theirs, through_single=part in ("mbce", "total"))
            compared[f"{named[part]}: gradient, {name}"] = pair
    return compared


def mib(arrays: Arrays, dtype: torch.dtype) -> Compared:
    x, weight = cast_inputs(arrays, dtype), float(arrays["const_kd_weight"])
    method = method_of("mib", arrays, output_weight=weight)
    logits, labels = x["logits"], x["labels"]
    terms = loss_terms(method, labels, output_of(logits), output_of(x["old_logits"]))
    distillation = terms["output_distillation"] / weight
    ((_, of_cross_entropy),) = gradients(terms["cross_entropy"], x, ["logits"])
    ((_, of_distillation),) = gradients(distillation, x, ["logits"])

    def total(logits: Tensor, labels: Tensor) -> Tensor:
        return unbiased_cross_entropy(logits, labels, method.num_old, 255)[0]

    classifier = GrowingClassifier(x["old_classifier_weight"].shape[1], [method.num_old]).to(dtype)
    rows = {"weight": x["old_classifier_weight"][:, :, None, None], "bias": x["old_classifier_bias"]}
    classifier.heads[0].load_state_dict(rows)
    classifier.grow(method.num_new, start="shared_background")
    old, new = (
        [p.detach().flatten(1) if p.ndim > 1 else p for p in head.parameters()] for head in classifier.heads
    )
    return {
        "cross-entropy of every pixel": Pair(every_pixel(total, logits, labels), arrays["out_ce_per_pixel"]),
        "sum of the cross-entropy": Pair(total(logits, labels), arrays["out_ce_sum"]),
        "cross-entropy": Pair(terms["cross_entropy"], arrays["out_ce_mean_all_pixels"]),
        "cross-entropy: gradient": Pair(of_cross_entropy, arrays["out_grad_ce_logits"]),
        "distillation": Pair(distillation, arrays["out_kd"]),
        "distillation: gradient": Pair(of_distillation, arrays["out_grad_kd_logits"]),
        "new rows": Pair(new[0], arrays["out_new_classifier_weight"]),
        "new biases": Pair(new[1], arrays["out_new_classifier_bias"], through_single=True),
        "old rows": Pair(old[0], arrays["out_old_classifier_weight_after"]),
        "old biases": Pair(old[1], arrays["out_old_classifier_bias_after"], through_single=True),
    }


def lwf_ilt(arrays: Arrays, dtype: torch.dtype) -> Compared:
    x = cast_inputs(arrays, dtype)
    logits, labels = x["logits"], x["labels"]
    num_old = x["old_logits"].shape[1]
    output = output_of(logits, backbone=x["features"])
    old = output_of(x["old_logits"], backbone=x["old_features"])
    options = {
        "lwf": {"output_weight": float(arrays["const_lwf_kd_weight"])},
        "ilt": {
            "output_weight": float(arrays["const_ilt_kd_weight"]),
            "feature_weight": float(arrays["const_ilt_de_weight"]),
        },
    }
    lwf, ilt = (
        loss_terms(
            METHODS[name](METHODS[name].Options(**values), num_old, logits.shape[1] - num_old),
            labels,
            output,
            old,
        )
        for name, values in options.items()
    )
    distillation = lwf["output_distillation"] / options["lwf"]["output_weight"]
    features = ilt["feature_distillation"] / options["ilt"]["feature_weight"]
    compared = {
        "cross-entropy of every pixel": Pair(
            every_pixel(
                lambda z, y: F.cross_entropy(z, y, ignore_index=255, reduction="sum"), logits, labels
            ),
            arrays["out_ce_per_pixel"],
        ),
        "cross-entropy": Pair(lwf["cross_entropy"], arrays["out_ce_mean_all_pixels"]),
        "distillation": Pair(distillation, arrays["out_kd"]),
        "distillation of features": Pair(features, arrays["out_de"]),
        "total of LwF": Pair(torch.stack(list(lwf.values())).sum(), arrays["out_lwf_total"]),
        "total of ILT": Pair(torch.stack(list(ilt.values())).sum(), arrays["out_ilt_total"]),
    }
    for name, loss, of, theirs in (
        ("cross-entropy", lwf["cross_entropy"], "logits", "out_grad_ce_logits"),
        ("distillation", distillation, "logits", "out_grad_kd_logits"),
        ("distillation of features", features, "features", "out_grad_de_features"),
    ):
        ((_, gradient),) = gradients(loss, x, [of])
        compared[f"{name}: gradient"] = Pair(gradient, arrays[theirs])
    return compared


def ssul(arrays: Arrays, dtype: torch.dtype) -> Compared:
    x, labels = cast_inputs(arrays, dtype), arrays["in_labels"]
    options = {"threshold": float(arrays["const_threshold"])}
    plain = method_of("ssul", arrays, unknown="none", **options)
    num_classes = plain.num_old + plain.num_new
    output, old = output_of(x["logits"]), output_of(x["old_logits"])
    loss = loss_terms(plain, labels, output, old)["cross_entropy"]
    base = plain.base_step(plain.options, 0, num_classes)
    compared = {
        "pseudo-labels": Pair(
            plain.targets(labels, cast(Output, old)).pseudo_labels, arrays["out_pseudo_labels"]
        ),
        "cross-entropy": Pair(loss, arrays["out_bce_mean_labelled"]),
        "cross-entropy of the labels as given": Pair(
            loss_terms(base, labels, output, old)["cross_entropy"], arrays["out_bce_of_given_labels"]
        ),
    }
    for _, gradient in gradients(loss, x, ["logits"]):
        pair = Pair(gradient, arrays["out_grad_bce_logits"], through_single=True)
        compared["cross-entropy: gradient"] = pair
    output, old = (unknown_output(x[name]) for name in ("unknown_logits", "unknown_old_logits"))
    compared["prediction with an unknown class"] = Pair(
        output.logits.argmax(dim=1), arrays["out_unknown_prediction"]
    )
    salient = labels.masked_fill((labels == 0) & (arrays["in_saliency"] > 0), SALIENT)
    for data_set, kind, given in (("voc", "salient", salient), ("ade", "background", labels)):
        method = method_of("ssul", arrays, unknown=kind, **options)
        base = method.base_step(method.options, 0, num_classes)
        given_to_base = base.targets(given, cast(Output, None)).pseudo_labels
        found = method.targets(given, cast(Output, old)).pseudo_labels
        loss = loss_terms(method, given, output, old)["cross_entropy"]
        for what, ours in (("labels", given_to_base), ("pseudo-labels", found)):
            theirs = arrays[f"out_unknown_{what.replace('-', '_')}_{data_set}"]
            compared[f"{what} with an unknown class, {data_set}"] = Pair(
                ours, renumbered(theirs, num_classes)
            )
        name = f"cross-entropy with an unknown class, {data_set}"
        compared[name] = Pair(loss, arrays[f"out_unknown_bce_{data_set}"])
        for _, gradient in gradients(loss, x, ["unknown_logits"]):
            theirs = arrays[f"out_grad_unknown_bce_{data_set}"]
            compared[f"{name}: gradient"] = Pair(gradient, theirs, through_single=True)
    return compared


def unknown_output(logits: Tensor) -> SegOutput:
    """Return what a model with an unknown class says, of the released code's logits, whose first is the unknown's."""
    ours = torch.cat([logits[:, 1:], logits[:, :1]], dim=1)
    return output_of(join_unknown(ours), grid_logits=ours)


def renumbered(labels: Tensor, num_classes: int) -> Tensor:
    """Return labels of which the unknown class is the last, where the released code has it first."""
    return torch.where(labels == 255, 255, torch.where(labels == 0, num_classes, labels - 1))


COMPARISONS: dict[str, Callable[[Arrays, torch.dtype], Compared]] = {
    "plop_pod": plop_pod,
    "plop_pseudo": plop_pseudo,
    "plop_median": plop_median,
    "dkd": dkd,
    "mib": mib,
    "lwf_ilt": lwf_ilt,
    "ssul": ssul,
    "mbs_step": mbs_step,
    "mbs_decoder": mbs_decoder,
}
"""What is compared, by the file's name without its case."""


def cases(name: str) -> list[str]:
    """Return the names of the files of a comparison that are here."""
    return sorted(path.stem for path in RIVALS.glob(f"{name}_case*.npz"))


def all_pairs(dtype: torch.dtype) -> Iterator[tuple[str, str, Pair]]:
    """Yield every file, quantity and pair."""
    for name, compare in COMPARISONS.items():
        for case in cases(name):
            for quantity, pair in compare(load_rival(case), dtype).items():
                yield case, quantity, pair


def table() -> list[str]:
    """Return rows of the largest difference of every quantity and its gradients, over the cases that are here."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for bits in (64, 32):
        for case, name, pair in all_pairs(torch.float64 if bits == 64 else torch.float32):
            quantity, _, gradient = name.partition(": gradient")
            column = f"{'gradient' if gradient or ': ' in name else 'value'} {bits}"
            row = found.setdefault((case.rpartition("_")[0], quantity), {})
            row[column] = max(row.get(column, 0.0), pair.difference)
    columns = [f"{what} {bits}" for bits in (64, 32) for what in ("value", "gradient")]
    return [
        f"| `{file}` | {quantity} | "
        + " | ".join(f"{row[column]:.0e}" if column in row else "–" for column in columns)
        + " |"
        for (file, quantity), row in found.items()
    ]


def main() -> None:
    """Print the table."""
    print("| file | quantity | value, float64 | gradient, float64 | value, float32 | gradient, float32 |")
    print("|---|---|--:|--:|--:|--:|", *table(), sep="\n")


if __name__ == "__main__":
    main()
