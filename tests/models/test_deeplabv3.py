"""models/: shapes, heads that grow, normalisation, weights, and errors for backbones that do not fit."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from models import DeepLabV3
from models.backbone import build_backbone, convert_to_sync_batch_norm, pixel_statistics
from models.base import Start
from models.output import most_likely
from tests.support.paths import WEIGHTS


def make_options(**options: Any) -> DeepLabV3.Options:
    """Options of a small model without pretrained weights."""
    return DeepLabV3.Options(**{"backbone": "test_resnet", "pretrained": False, "channels": 8, **options})


def small_model(num_classes: list[int] | None = None, **options: Any) -> DeepLabV3:
    """A seeded DeepLabV3 of few parameters, in evaluation mode."""
    torch.manual_seed(0)
    return DeepLabV3(num_classes or [3], make_options(**options)).eval()


def random_images(height: int = 32, width: int = 48, batch: int = 2) -> Tensor:
    """Images (B,3,H,W) uint8."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(("stride", "grid"), [(8, (8, 4)), (16, (4, 2)), (32, (2, 1))])
def test_the_output_stride_sets_the_grid(stride: int, grid: tuple[int, int]) -> None:
    output = small_model(output_stride=stride)(random_images(64, 32))
    assert output.grid_logits.shape == (2, 3, *grid)
    assert output.features.shape == (2, 8, *grid)
    assert output.logits.shape == (2, 3, 64, 32)


@pytest.mark.parametrize("size", [(33, 50), (31, 16), (17, 97)])
def test_logits_have_the_image_size_where_it_is_no_multiple_of_the_stride(size: tuple[int, int]) -> None:
    output = small_model([3, 2])(random_images(*size))
    grid = tuple(-(-side // 16) for side in size)
    assert output.logits.shape == (2, 5, *size)
    assert output.grid_logits.shape == (2, 5, *grid)
    assert output.features.shape == (2, 8, *grid)
    assert output.class_tokens.shape == (5, 8)
    assert output.class_embeddings is None


@pytest.mark.parametrize("num_classes", [1, 8, 21])
def test_the_largest_class_is_that_of_the_logits_at_image_size(num_classes: int) -> None:
    model, images = small_model([num_classes]), random_images(33, 50)
    output, grid = model(images), model(images, full_size=False)
    assert grid.pixel_logits is None
    assert torch.equal(grid.grid_logits, output.grid_logits)
    found = model.most_likely(grid.grid_logits, torch.Size((33, 50)))
    assert torch.equal(found, output.logits.argmax(dim=1))


def test_of_equal_classes_the_first_is_the_largest() -> None:
    grid_logits = torch.zeros(1, 20, 2, 2)
    grid_logits[:, [5, 9, 17]] = 1
    assert most_likely(grid_logits, torch.Size((4, 4))).eq(5).all()


@pytest.mark.parametrize(
    ("head", "kernels"),
    [
        ("3x3", {"project": (8, 40, 3, 3)}),
        ("1x1+3x3", {"reduce": (8, 40, 1, 1), "project": (8, 8, 3, 3)}),
        ("1x1", {"project": (8, 40, 1, 1)}),
    ],
)
def test_the_features_are_those_of_the_convolutions_that_the_head_names(
    head: str, kernels: dict[str, tuple[int, ...]]
) -> None:
    model, images = small_model(head=head), random_images()
    weights = {name: tuple(x.shape) for name, x in model.state_dict().items() if x.dim() == 4}
    found = {name: weights.get(f"{name}.0.weight") for name in ("reduce", "project")}
    assert {name: shape for name, shape in found.items() if shape} == kernels
    features = model.aspp(model.backbone(model.normalise(images))[-1])
    for name in kernels:
        features = model.get_submodule(name)(features)
    output = model(images)
    assert torch.equal(output.features, features)
    assert torch.equal(model.named_maps(images, ["head"])["head"][0], features)


def test_dropout_thins_what_the_last_convolution_sees_in_training_only() -> None:
    model, images = small_model(head="1x1+3x3", dropout=0.25), random_images(96, 96)
    seen: dict[str, Tensor] = {}
    model.reduce.register_forward_hook(lambda *hooked: seen.update(given=hooked[2].detach().clone()))
    model.project.register_forward_pre_hook(lambda _, given: seen.update(taken=given[0].detach().clone()))
    model(images)
    assert torch.equal(seen["taken"], seen["given"])
    model.train()(images)
    given, taken = (seen[name][seen["given"] != 0] for name in ("given", "taken"))
    kept = taken != 0
    torch.testing.assert_close(taken[kept], given[kept] / 0.75)
    assert 0.65 < kept.double().mean() < 0.85


@pytest.mark.parametrize("start", ["random", "background"])
def test_growing_keeps_the_old_logits_bit_for_bit(start: Start) -> None:
    model, images = small_model([3, 2]), random_images()
    before = model(images)
    model.grow(2, start)
    after = model(images)
    assert torch.equal(after.logits[:, :5], before.logits)
    assert torch.equal(after.class_tokens[:5], before.class_tokens)
    assert torch.equal(after.features, before.features)


def test_with_weight_transfer_new_logits_equal_the_background() -> None:
    model = small_model()
    model.grow(2, start="background")
    logits = model(random_images()).logits
    for new in (3, 4):
        assert torch.equal(logits[:, new], logits[:, 0])


def test_without_weight_transfer_new_logits_differ_from_the_background_and_each_other() -> None:
    model = small_model()
    model.grow(2)
    logits = model(random_images()).logits
    assert not torch.isclose(logits[:, 3], logits[:, 0]).any()
    assert not torch.isclose(logits[:, 3], logits[:, 4]).any()


def test_transferred_weights_are_a_copy_that_trains_on_its_own() -> None:
    model = small_model()
    model.grow(1, start="background")
    with torch.no_grad():
        model.classifier.heads[1].get_parameter("weight").add_(1)
    tokens = model.classifier.class_tokens()
    torch.testing.assert_close(tokens[3] - tokens[0], torch.ones(8))


def test_class_tokens_are_the_rows_of_the_heads_and_their_gradient_reaches_each() -> None:
    model = small_model([3, 2])
    tokens = model(random_images()).class_tokens
    weights = [head.get_parameter("weight") for head in model.classifier.heads]
    assert torch.equal(tokens, torch.cat([weight[:, :, 0, 0] for weight in weights]))
    tokens[2:4].sum().backward()
    base, later = (weight.grad for weight in weights)
    assert base is not None
    assert later is not None
    assert base[:, 0, 0, 0].tolist() == [0, 0, 1]
    assert later[:, 0, 0, 0].tolist() == [1, 0]


def test_grid_logits_are_the_tokens_on_the_features_plus_a_bias() -> None:
    model = small_model([3, 2])
    output = model(random_images())
    bias = torch.cat([head.get_parameter("bias") for head in model.classifier.heads])
    expected = torch.einsum("kd,bdhw->bkhw", output.class_tokens, output.features) + bias[:, None, None]
    torch.testing.assert_close(output.grid_logits, expected)


def test_the_state_of_a_grown_model_fits_a_model_built_with_the_sizes_of_its_steps() -> None:
    model, images = small_model([3]), random_images()
    model.grow(2, start="background")
    again = small_model([3, 2])
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(images).logits, model(images).logits)
    with pytest.raises(RuntimeError, match="classifier"):
        small_model([5]).load_state_dict(model.state_dict())


def test_backbone_parameters_are_those_of_the_backbone() -> None:
    model = small_model()
    names = {id(p): name for name, p in model.named_parameters()}
    inside = {names[id(p)] for p in model.backbone_parameters()}
    assert inside == {name for name in names.values() if name.startswith("backbone.")}


@pytest.mark.parametrize("backbone", ["resnet18", "test_resnet", "tf_efficientnet_lite0"])
def test_pixel_statistics_are_those_of_timm(backbone: str) -> None:
    mean, std = pixel_statistics(backbone)
    config: Any = timm.create_model(backbone).pretrained_cfg
    torch.testing.assert_close(mean, torch.tensor(config["mean"]) * 255)
    torch.testing.assert_close(std, torch.tensor(config["std"]) * 255)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_images_are_normalised_with_the_statistics_of_the_backbone(dtype: torch.dtype) -> None:
    model, images = small_model(backbone="resnet18"), random_images()
    seen: list[Tensor] = []
    model.backbone.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    model(images.to(dtype))
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    torch.testing.assert_close(seen[0], (images.float() / 255 - mean) / std)


def test_logits_are_float32_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = small_model()(random_images())
    assert output.logits.dtype == output.grid_logits.dtype == torch.float32


def test_weights_of_a_path_are_those_of_the_file() -> None:
    if not WEIGHTS.is_file():
        pytest.skip(f"no weights here: {WEIGHTS.name} is absent from shared/weights")
    backbone, _, channels, _ = build_backbone("tf_efficientnet_lite0", str(WEIGHTS), output_stride=16)
    assert channels == 320
    stored = torch.load(WEIGHTS, weights_only=True)
    stored = stored.get("state_dict", stored)
    # Converted from another framework: the file lacks what only PyTorch counts.
    state = {name: x for name, x in backbone.state_dict().items() if "num_batches_tracked" not in name}
    assert len(state) > 200
    for name, tensor in state.items():
        assert torch.equal(tensor, stored[name]), name


@pytest.mark.parametrize("backbone", ["test_resnet", "test_byobnet", "test_convnext"])
def test_a_path_loads_a_timm_state_dict_and_leaves_the_random_numbers_in_step(
    tmp_path: Path, backbone: str
) -> None:
    source: Any = timm.create_model(backbone)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    torch.manual_seed(3)
    loaded = build_backbone(backbone, str(tmp_path / "weights.pth"), output_stride=32).network
    after_loading = torch.rand(1)
    torch.manual_seed(3)
    build_backbone(backbone, False, output_stride=32)
    assert torch.equal(torch.rand(1), after_loading)
    images = random_images(64, 64).float() / 255
    source.eval()
    # forward_features of this one ends in a norm that is part of its head.
    is_convnext = backbone == "test_convnext"
    expected = source.stages(source.stem(images)) if is_convnext else source.forward_features(images)
    torch.testing.assert_close(loaded.eval()(images)[-1], expected)


@pytest.mark.parametrize(
    ("backbone", "other"),
    [
        ("test_resnet", "resnet18"),  # names in common, of other shapes
        ("test_resnet", "test_byobnet"),  # no name in common
        ("test_byobnet", "test_resnet"),
    ],
)
def test_weights_of_another_backbone_are_refused(tmp_path: Path, backbone: str, other: str) -> None:
    path = tmp_path / "weights.pth"
    torch.save(timm.create_model(other).state_dict(), path)
    with pytest.raises(
        ValueError, match=rf"model\.pretrained: .*weights\.pth.*not hold weights of '{backbone}'"
    ):
        build_backbone(backbone, str(path), output_stride=16)


def test_weights_may_lie_below_a_key_and_lack_what_only_pytorch_counts(tmp_path: Path) -> None:
    source = timm.create_model("test_resnet").state_dict()
    weights = {name: x + 1 for name, x in source.items() if "num_batches_tracked" not in name}
    torch.save({"state_dict": weights}, tmp_path / "weights.pth")
    state = build_backbone(
        "test_resnet", str(tmp_path / "weights.pth"), output_stride=16
    ).network.state_dict()
    kept = [name for name in state if "num_batches_tracked" not in name]
    assert len(kept) > 20
    assert [name for name in kept if not torch.equal(state[name], weights[name])] == []


def test_a_file_that_lacks_one_weight_is_refused_and_the_weight_named(tmp_path: Path) -> None:
    source = timm.create_model("test_resnet").state_dict()
    del source["layer1.0.conv1.weight"]
    torch.save(source, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights\.pth' does not .*: it lacks layer1\.0\.conv1\.weight$"):
        build_backbone("test_resnet", str(tmp_path / "weights.pth"), output_stride=16)


class _RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("executed"),))


def test_a_weights_file_that_would_run_code_is_refused_and_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": _RunsCode()}, "weights.pth")
    with pytest.raises(ValueError, match=r"model\.pretrained: 'weights\.pth' does not hold weights"):
        build_backbone("test_resnet", "weights.pth", output_stride=16)
    assert not Path("executed").exists()


def test_synchronised_batch_norm_keeps_outputs_and_names() -> None:
    model, images = small_model(backbone="tf_efficientnet_lite0"), random_images()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.get_buffer("running_mean"))
                nn.init.normal_(module.bias)
    before, names = model(images), list(model.state_dict())
    converted = convert_to_sync_batch_norm(model).eval()
    assert converted is model
    after = converted(images)
    torch.testing.assert_close(after.logits, before.logits)
    torch.testing.assert_close(after.features, before.features)
    assert list(converted.state_dict()) == names
    norms = [module for module in converted.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) > 40
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x02}q\x00."])
def test_a_file_without_weights_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.pretrained: .*weights\.pth.*not hold weights"):
        build_backbone("test_resnet", str(path), output_stride=16)


def test_a_missing_weights_file_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"model\.pretrained: no file 'nowhere\.pth'"):
        build_backbone("test_resnet", "nowhere.pth", output_stride=16)


def test_weights_that_cannot_be_fetched_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(ValueError, match=r"could not be fetched \(.*no network\).*model\.pretrained=PATH"):
        build_backbone("test_resnet", True, output_stride=16)


@pytest.mark.parametrize("backbone", ["test_resnet", "resnet18", "regnetx_002"])
def test_stages_of_residual_networks_are_those_before_the_activation_that_ends_them(backbone: str) -> None:
    options = DeepLabV3.Options(backbone=backbone, pretrained=False, channels=4, output_stride=32)
    model = DeepLabV3([3], options).eval()
    for module in model.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(
                module.weight
            )  # timm's zeros would leave a block its shortcut alone, which is positive
    images = random_images(64, 64)
    activated = model.backbone(model.normalise(images))
    output = model(images, with_stages=True)
    assert all((stage < 0).any() for stage in output.stages)
    for stage, after in zip(output.stages, activated, strict=True):
        assert torch.equal(stage.relu(), after)
    torch.testing.assert_close(model(images).logits, output.logits, rtol=0, atol=0)
    assert all(end is not None and end.given is None for end in model.stage_ends), "nothing is held on to"


def test_stages_that_end_without_an_activation_are_as_the_backbone_gives_them() -> None:
    options = DeepLabV3.Options(backbone="test_efficientnet", pretrained=False, channels=4, output_stride=32)
    model = DeepLabV3([3], options).eval()
    images = random_images(64, 64)
    stages = model(images, with_stages=True).stages
    for stage, given in zip(stages, model.backbone(model.normalise(images)), strict=True):
        assert torch.equal(stage, given)


def test_the_gradient_of_a_stage_reaches_all_before_its_activation() -> None:
    options = DeepLabV3.Options(backbone="test_resnet", pretrained=False, channels=4, output_stride=32)
    model = DeepLabV3([3], options).eval()
    stage = model(random_images(64, 64), with_stages=True).stages[0]
    *_, block = model.backbone.get_submodule("layer1").children()
    bias = block.get_parameter("bn2.bias")
    (gradient,) = torch.autograd.grad(stage.sum(), bias)
    assert torch.equal(gradient, torch.full_like(gradient, stage[:, 0].numel()))
