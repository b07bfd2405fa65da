"""methods/segacil.py: one solution however it is come by, over the features that a base step has trained."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from losses.ridge import add_cells, expand, solve_sums
from methods.base import Looks
from methods.closed_form import ClosedForm
from methods.segacil import SegACIL, to_grid
from models import load_model
from tests.support.golden import load_method_golden
from tests.support.training import SEGMENTER, WORKER, outcome, tiny, train, weights
from tests.trainer.test_resume import Killed
from trainer.checkpoint import checkpoint_path, load_checkpoint
from trainer.learn import whole_datasets
from trainer.plan import prepare
from trainer.session import Session

FIELDS = ("method=segacil", "method.expansion=24")
EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}
ALONE = cast(Looks, SimpleNamespace(device=torch.device("cpu"), sum=lambda x: x))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run of three steps lies, in runs/segacil."""
    folder = tmp_path_factory.mktemp("segacil")
    train(tiny(folder, "segacil", *FIELDS, "task=[[ring, disc], [star], [cross]]"))
    return folder


def state_of(folder: Path, step: int, log: str = "segacil") -> dict[str, Tensor]:
    state: dict[str, Tensor] = load_checkpoint(checkpoint_path(folder / "runs" / log, step))["method_state"]
    return state


def golden_cells(golden: dict[str, Tensor], step: int) -> tuple[Tensor, Tensor]:
    return golden[f"step{step}.features"].flatten(0, 1), golden[f"step{step}.labels"].flatten()


def test_the_steps_of_the_authors_code_from_columns_of_zero_are_these_sums_solved() -> None:
    golden = load_method_golden("SegACIL")
    expansion, gamma = golden["expansion.weight"], float(golden["gamma"])
    gram, targets = torch.zeros(12, 12).double(), torch.zeros(12, 0).double()
    for step, num_classes in enumerate((3, 4, 6)):
        x, labels = golden_cells(golden, step)
        features = expand(x, expansion)
        torch.testing.assert_close(features, golden[f"step{step}.expanded"].flatten(0, 1), **EXACT)
        targets = torch.cat([targets, torch.zeros(12, num_classes - targets.shape[1]).double()], dim=1)
        add_cells(gram, targets, features, labels)
        weight = solve_sums(gram, targets, gamma)
        for name in ("zero_tail_weight", "joint_ridge_weight"):
            torch.testing.assert_close(weight, golden[f"step{step}.{name}"], **EXACT)
        inverse = torch.linalg.inv(gram + gamma * torch.eye(12))
        torch.testing.assert_close(inverse, golden[f"step{step}.official_R"], **EXACT)


def test_what_the_authors_random_columns_add_never_goes() -> None:
    """W of the released code is ours + A_t⁻¹ · A_{s−1} · V for columns V that were appended at step s."""
    golden = load_method_golden("SegACIL")
    before, gram = [], torch.eye(12).double() * golden["gamma"]
    for step in range(3):
        before.append(gram)
        features, labels = golden[f"step{step}.expanded"].flatten(0, 1), golden_cells(golden, step)[1]
        gram = gram + features[labels != 255].T @ features[labels != 255]
    tails = torch.cat([before[s] @ golden[f"step{s}.official_random_tail"] for s in range(3)], dim=1)
    official = golden["step2.joint_ridge_weight"] + torch.linalg.solve(gram, tails)
    torch.testing.assert_close(official, golden["step2.official_weight"], **EXACT)
    scores = expand(golden["query.features"][0], golden["expansion.weight"]) @ official
    torch.testing.assert_close(scores.unflatten(0, (3, 3)), golden["query.official_scores"][0], **EXACT)


def test_sums_and_solution_by_hand() -> None:
    gram, targets = torch.zeros(1, 1).double(), torch.zeros(1, 3).double()
    add_cells(gram, targets, torch.tensor([[1.0], [2.0]]).double(), torch.tensor([0, 1]))
    assert gram.item() + 1 == 6
    assert solve_sums(gram, targets, 1.0).tolist() == [[pytest.approx(1 / 6), pytest.approx(1 / 3), 0]]
    add_cells(gram, targets, torch.tensor([[3.0], [9.0]]).double(), torch.tensor([2, 255]))
    assert (gram.item() + 1, targets.tolist()) == (15, [[1, 2, 3]])
    expected = [pytest.approx(1 / 15), pytest.approx(2 / 15), pytest.approx(0.2)]
    assert solve_sums(gram, targets, 1.0).tolist() == [expected]
    expansion = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    assert expand(torch.tensor([[2.0, 1.0]]), expansion).tolist() == [[1, 0]]


def test_however_cells_are_cut_into_pieces_and_ranks_the_sums_are_the_same() -> None:
    method = SegACIL(SegACIL.Options(expansion=7), 3, 2)
    torch.manual_seed(0)
    method.state["expansion"] = torch.randn(7, 4)
    x, labels = torch.randn(90, 4), torch.tensor([0, 1, 3, 4, 255]).repeat(18)
    order = torch.randperm(90)
    whole = method.add_up(ALONE, [(x, labels)], 4, 5)
    pieces = list(zip(x[order].split(13), labels[order].split(13), strict=True))
    first, second, none = (method.add_up(ALONE, cells, 4, 5) for cells in (pieces[:2], pieces[2:], []))
    for total, *parts in zip(whole, first, second, none, strict=True):
        torch.testing.assert_close(torch.stack(parts).sum(dim=0), total, **EXACT)
    assert whole.counts.tolist() == [18, 18, 0, 18, 18]


def test_nothing_but_the_solution_changes_after_the_base_step(folder: Path) -> None:
    config = tiny(folder, "segacil")
    base, last = weights(config, 0), weights(config, 2)
    changed = {name for name in base if not torch.equal(base[name], last[name])}
    added = {name for name in last.keys() - base.keys() if not name.startswith("classifier.")}
    assert changed == set()
    assert added == {"closed_form.weight", "closed_form.bias", "closed_form.expansion"}
    assert last["closed_form.weight"].shape == (5, 24)
    assert not any(name.startswith("closed_form") for name in base)
    assert [state_of(folder, step).get("targets", torch.zeros(0, 0)).shape[1] for step in range(3)] == [
        0,
        4,
        5,
    ]


def test_three_steps_equal_joint_ridge_regression_on_all_their_cells(folder: Path) -> None:
    """Least squares over every cell at once; a class has the target 0 at all cells that were seen before it."""
    config = tiny(folder, "segacil", *FIELDS, "task=[[ring, disc], [star], [cross]]")
    plan = prepare(config, WORKER)
    state = state_of(folder, 2)
    rows: list[Tensor] = []
    targets: list[Tensor] = []
    for step in plan.task.steps:
        # The model that labels a step's background: that of the step before, from step 1 on with its solution.
        model, _ = load_model(checkpoint_path(config.run_dir, max(step.index - 1, 0)))
        method = SegACIL(config.method, step.num_old, step.num_new)
        if step.index == 1:  # solved for the base step within step 1
            method.state = base_state(rows, targets, state)
            method.apply(model)
        elif step.index == 2:
            method.state = state_of(folder, 1)
        session = cast(Session, SimpleNamespace(config=config, plan=plan, worker=WORKER))
        for dataset in whole_datasets(session, step, of_base_step=False):
            for image, label, _ in (dataset[i] for i in range(len(dataset))):
                with torch.no_grad():
                    images, labels = image[None], label[None].long()
                    x = model.describe(images, ("head",))
                    cells = method.label_cells(model, images, labels, x, step.num_classes).flatten()
                features = x.permute(0, 2, 3, 1).flatten(0, 2).double() @ state["expansion"].double().T
                rows.append(features.clamp(min=0)[cells != 255])
                targets.append(torch.nn.functional.one_hot(cells[cells != 255], 5).double())
    penalty, none = torch.eye(24).double(), torch.zeros(24, 5).double()
    expected = torch.linalg.lstsq(torch.cat([*rows, penalty]), torch.cat([*targets, none])).solution
    solution = solve_sums(state["gram"], state["targets"], 1.0)
    assert float(solution.abs().max()) > 0.01
    torch.testing.assert_close(solution, expected, **EXACT)
    solved = weights(config, 2)["closed_form.weight"].double() / state["sharpness"]
    torch.testing.assert_close(solved, solution.T, rtol=1e-5, atol=1e-7)


def base_state(rows: list[Tensor], targets: list[Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state between re-alignment and the images of step 1."""
    x = torch.cat(rows)
    kept = {name: state[name] for name in ("expansion", "sharpness")}
    return {"gram": x.T @ x, "targets": x.T @ torch.cat(targets)[:, :3], **kept}


def test_pseudo_labels_are_the_old_classes_that_score_enough() -> None:
    method = SegACIL(SegACIL.Options(threshold=0.8), 3, 1)
    scores = torch.tensor([[0.1, 0.9, 0.0], [0.3, 0.75, 0.1], [0.95, 0.1, 0.0], [0.0, 0.9, 0.1]])
    model: Any = SimpleNamespace(
        closed_form=lambda x: scores.T[None, :, None], to_image_size=lambda logits, size: logits
    )
    labels, images = torch.tensor([[[0, 0, 0, 3]]]), torch.zeros(1, 3, 1, 4)
    assert method.label_cells(model, images, labels, torch.zeros(1, 1, 1, 4), 4).tolist() == [[[1, 0, 0, 3]]]
    none = SegACIL(SegACIL.Options(threshold=None), 3, 1)
    assert none.label_cells(model, images, labels, torch.zeros(1, 1, 1, 4), 4).tolist() == [[[0, 0, 0, 3]]]


def test_labels_are_shrunk_by_nearest_neighbour() -> None:
    labels = torch.arange(16).view(1, 4, 4)
    labels[0, 0, 2] = 255
    assert to_grid(labels, torch.Size((2, 2))).tolist() == [[[0, 255], [8, 10]]]


def test_a_run_killed_within_its_pass_ends_bit_for_bit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(folder, "killed", *FIELDS, "task=[[ring, disc], [star], [cross]]")
    learn, calls = ClosedForm.learn, iter(range(9))

    def killed(self: ClosedForm, *arguments: Any) -> Any:
        if next(calls) == 1:  # after re-alignment, before the images of step 1
            raise Killed
        return learn(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ClosedForm, "learn", killed)
        with pytest.raises(Killed):
            train(config)
    train(config)
    plain = outcome(folder / "runs/segacil", num_steps=3)
    assert outcome(config.run_dir, num_steps=3) == plain


def test_a_segmenter_is_solved_over_its_encoder_disjoint_and_with_memory(tmp_path: Path) -> None:
    config = tiny(tmp_path, "segmenter", *FIELDS, *SEGMENTER, "setting=disjoint", "memory.size=4")
    results = train(config)
    model, _ = load_model(checkpoint_path(config.run_dir, 1))
    assert model.closed_form is not None
    assert model.closed_form.described_by == ("backbone",)
    assert len(results["steps"]) == 2


def test_a_solved_checkpoint_goes_on_with_its_sums_and_other_methods_are_told_what_they_leave(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = f"init_from={checkpoint_path(folder / 'runs/segacil', 1)}"
    task = "task=[[ring, disc, star], [cross]]"
    train(tiny(folder, "again", *FIELDS, task, base))
    ours, theirs = state_of(folder, 1, "again"), state_of(folder, 2)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(ValueError, match=r"method\.expansion: found 8, but the sums .* of 24 features"):
        train(tiny(folder, "other", "method=segacil", "method.expansion=8", task, base))
    capsys.readouterr()
    train(tiny(folder, "mib", "method=mib", task, base))
    assert "scores by a solved classifier, which method mib leaves behind" in capsys.readouterr().out
    assert not any(name.startswith("closed_form") for name in weights(tiny(folder, "mib"), 1))
