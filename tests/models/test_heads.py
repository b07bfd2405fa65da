"""models/classifier.py: heads of their own, and an unknown class whose score joins the background's."""

import pytest
import torch

from models import DeepLabV3
from models.classifier import OwnHeads, join_unknown


def make_model(classifier: str = "heads+unknown") -> DeepLabV3:
    torch.manual_seed(0)
    options = DeepLabV3.Options(
        backbone="test_resnet", pretrained=False, channels=6, head="1x1", classifier=classifier
    )
    return DeepLabV3([3], options).eval()


def heads_of(model: DeepLabV3) -> OwnHeads:
    assert isinstance(model.classifier, OwnHeads)
    return model.classifier


def test_background_each_steps_classes_and_the_unknown_class_have_heads_of_their_own() -> None:
    model = make_model()
    model.grow(2)
    heads = heads_of(model)
    assert model.num_classes == [3, 2]
    assert heads.unknown is not None
    features = torch.randn(2, 6, 4, 4)
    parts = [head(features) for head in (heads.background, *heads.heads, heads.unknown)]
    assert [part.shape[1] for part in parts] == [1, 2, 2, 1]
    torch.testing.assert_close(model.classify(features), torch.cat(parts, dim=1))
    assert heads.class_tokens().shape == (5, 6)
    assert model.background_parameters() == list(heads.background.parameters())
    newest = [*heads.heads[-1].parameters(), *heads.unknown.parameters()]
    assert [id(p) for p in model.newest_parameters()] == [id(p) for p in newest]


@pytest.mark.parametrize("start", ["background", "unknown"])
def test_a_new_head_is_a_copy_of_the_whole_head_that_it_starts_as(start: str) -> None:
    model = make_model()
    heads = heads_of(model)
    for module in heads.modules():  # as training leaves them
        if isinstance(module, torch.nn.BatchNorm2d):
            module.get_buffer("running_mean").uniform_()
            torch.nn.init.uniform_(module.weight)
    model.grow(2, start=start)  # type: ignore[arg-type]
    logits = model.classify(torch.randn(2, 6, 4, 4))
    source = logits[:, [0 if start == "background" else -1]]
    torch.testing.assert_close(logits[:, 3:5], source.expand(-1, 2, -1, -1))


def test_heads_that_share_the_background_hold_equal_parts_of_its_probability() -> None:
    model = make_model("heads")
    features = torch.randn(2, 6, 4, 4)
    before = model.classify(features)[:, :1].exp()
    model.grow(2, start="shared_background")
    after = model.classify(features)[:, [0, 3, 4]].exp()
    torch.testing.assert_close(after, (before / 3).expand_as(after))


def test_without_an_unknown_class_nothing_starts_as_it() -> None:
    with pytest.raises(ValueError, match="has none"):
        make_model("heads").grow(1, start="unknown")


def test_the_unknown_score_is_added_to_the_backgrounds_and_the_sum_may_exceed_every_class() -> None:
    scores = torch.tensor([[0.3, 0.6, 0.1], [0.9, 0.99, 0.5], [0.2, 0.5, 0.1], [1.0, 1.0, 0.2]])
    joined = join_unknown(scores.double().logit().clamp(-90, 90)[:, :, None, None])[..., 0, 0]
    assert joined.shape == (4, 2)
    torch.testing.assert_close(joined.sigmoid()[:, 0], torch.tensor([0.4, 1.0, 0.3, 1.0]).double())
    assert joined.isfinite().all()
    assert joined.argmax(dim=1).tolist() == [1, 0, 1, 0]


def test_logits_and_prediction_know_the_classes_alone_and_agree() -> None:
    model = make_model()
    images = torch.rand(2, 3, 32, 32) * 255
    output = model(images)
    assert output.grid_logits.shape[1] == 4
    assert output.logits.shape == (2, 3, 32, 32)
    found = model.most_likely(output.grid_logits, images.shape[2:])
    assert torch.equal(found, output.logits.argmax(dim=1))


def test_the_state_of_grown_heads_fits_a_model_built_with_the_sizes_of_its_steps() -> None:
    model = make_model()
    model.grow(2, start="unknown")
    rebuilt = DeepLabV3(model.num_classes, model.options).eval()
    rebuilt.load_state_dict(model.state_dict())
    images = torch.rand(1, 3, 32, 32) * 255
    assert torch.equal(rebuilt(images).grid_logits, model(images).grid_logits)
