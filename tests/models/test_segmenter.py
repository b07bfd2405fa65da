"""models/segmenter.py: masks by hand, tokens that grow, any image size, weights, and errors."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import MODELS, Segmenter, SegOutput, build_model
from models.backbone import build_vit
from models.segmenter import ClassTokens, MaskTransformer


def small_model(num_classes: list[int] | None = None, **options: Any) -> Segmenter:
    """A seeded Segmenter of few parameters, in evaluation mode; patches of 8 pixels."""
    torch.manual_seed(0)
    small = {"backbone": "test_vit", "pretrained": False, "patch_size": 8, "channels": 12, "num_heads": 2}
    image_size = options.pop("image_size", 32)
    return Segmenter(num_classes or [3], Segmenter.Options(**{**small, **options}), image_size).eval()


def random_images(height: int = 32, width: int = 32, batch: int = 2) -> Tensor:
    """Images (B,3,H,W) uint8."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("size", [(32, 32), (64, 40), (33, 50), (7, 9), (1, 1)])
def test_shapes_for_any_image_size(size: tuple[int, int]) -> None:
    output = small_model([3, 2])(random_images(*size))
    grid = tuple((side + 7) // 8 for side in size)
    assert output.logits.shape == (2, 5, *size)
    assert output.grid_logits.shape == (2, 5, *grid)
    assert output.features.shape == (2, 12, *grid)
    assert output.class_tokens.shape == (5, 12)
    assert output.class_embeddings.shape == (2, 5, 12)


def test_an_image_is_padded_with_the_mean_colour_at_the_right_and_the_bottom_and_the_logits_are_cropped() -> (
    None
):
    model, images = small_model(), random_images(27, 30)
    mean = model.pixel_mean.expand(2, 3, 32, 32).clone()
    mean[:, :, :27, :30] = images.float()
    padded, output = model(mean), model(images)
    torch.testing.assert_close(output.logits, padded.logits[:, :, :27, :30])
    torch.testing.assert_close(output.grid_logits, padded.grid_logits)
    assert torch.equal(model.to_image_size(output.grid_logits, torch.Size((27, 30))), output.logits)


def test_the_largest_class_is_that_of_the_logits_at_image_size_also_beside_padding() -> None:
    model, images = small_model([20]), random_images(27, 30)
    output, grid = model(images), model(images, full_size=False)
    assert grid.pixel_logits is None
    assert torch.equal(grid.grid_logits, output.grid_logits)
    found = model.most_likely(grid.grid_logits, torch.Size((27, 30)))
    assert torch.equal(found, output.logits.argmax(dim=1))


def test_masks_are_normed_cosines_of_projected_patches_and_class_embeddings() -> None:
    model = small_model([3, 2])
    with torch.no_grad():
        model.classifier.scales[0].copy_(torch.tensor([1.0, 2.0, 0.5]))
        model.classifier.shifts[1].copy_(torch.tensor([0.3, -0.1]))
    with torch.no_grad():
        output = model(random_images())
    scale, shift = [1.0, 2.0, 0.5, 1.0, 1.0], [0.0, 0.0, 0.0, 0.3, -0.1]
    for image, row, column in [(0, 0, 0), (1, 2, 3)]:
        patch = output.features[image, :, row, column].double()
        embeddings = output.class_embeddings[image].double()
        cosines = [float(patch @ e / (patch.norm() * e.norm())) for e in embeddings]
        mean = sum(cosines) / 5
        std = (sum((c - mean) ** 2 for c in cosines) / 4) ** 0.5  # unbiased
        expected = [(c - mean) / (std + 1e-5) * a + b for c, a, b in zip(cosines, scale, shift, strict=True)]
        assert output.grid_logits[image, :, row, column].tolist() == pytest.approx(expected, abs=1e-4)


def test_the_norm_over_the_classes_of_a_worked_example() -> None:
    classes = ClassTokens(4, [3])
    cosine = torch.tensor([0.1, 0.2, 0.6]).view(1, 3, 1, 1)
    # mean 0.3, unbiased variance (0.04 + 0.01 + 0.09) / 2 = 0.07
    expected = torch.tensor([-0.2, -0.1, 0.3]) / (0.07**0.5 + 1e-5)
    torch.testing.assert_close(classes(cosine).flatten(), expected)


def test_the_decoder_is_a_transformer_over_patches_and_class_tokens_together() -> None:
    torch.manual_seed(0)
    decoder = MaskTransformer(6, 8, num_blocks=2, num_heads=2, drop_path=0.0).eval()
    patches, tokens = torch.randn(1, 4, 6), torch.randn(3, 8)
    x = torch.cat([decoder.embed(patches)[0], tokens])
    for block in decoder.blocks:
        assert isinstance(block, nn.Module)
        attention, mlp = block.get_submodule("attn"), block.get_submodule("mlp")
        q, k, v = attention.get_submodule("qkv")(block.get_submodule("norm1")(x)).chunk(3, dim=1)
        heads = []
        for half in (slice(0, 4), slice(4, 8)):
            weights = (q[:, half] @ k[:, half].T / 4**0.5).softmax(dim=1)
            heads.append(weights @ v[:, half])
        x = x + attention.get_submodule("proj")(torch.cat(heads, dim=1))
        hidden = F.gelu(mlp.get_submodule("fc1")(block.get_submodule("norm2")(x)))
        x = x + mlp.get_submodule("fc2")(hidden)
    x = decoder.norm(x)
    projected, embeddings = decoder(patches, tokens)
    torch.testing.assert_close(projected[0], x[:4] @ decoder.project_patches.weight.T)
    torch.testing.assert_close(embeddings[0], x[4:] @ decoder.project_classes.weight.T)


def test_every_layer_norm_has_the_authors_eps_whatever_the_default_of_timm() -> None:
    norms = [module for module in small_model().modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) > 2 * 6 + 2 * 2
    assert {norm.eps for norm in norms} == {1e-5}


@pytest.mark.parametrize(
    ("normalisation", "mean", "std"),
    [
        ("backbone", [127.5] * 3, [127.5] * 3),
        ("imagenet", [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
    ],
)
def test_images_are_normalised_with_the_statistics_that_are_asked_for(
    normalisation: str, mean: list[float], std: list[float]
) -> None:
    model = small_model(normalisation=normalisation)
    black, white = model.normalise(torch.tensor([0.0, 255.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1))
    assert black.flatten().tolist() == pytest.approx([-m / s for m, s in zip(mean, std, strict=True)])
    assert white.flatten().tolist() == pytest.approx([(255 - m) / s for m, s in zip(mean, std, strict=True)])


def test_attention_goes_through_scaled_dot_product_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.Size] = []
    attend = F.scaled_dot_product_attention

    def spy(q: Tensor, *args: Any, **options: Any) -> Tensor:
        calls.append(q.shape)
        return attend(q, *args, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    small_model()(random_images())
    encoder, decoder = (2, 2, 17, 32), (2, 2, 19, 6)  # 16 patches and a class token; 16 patches and 3 classes
    assert calls == [encoder] * 6 + [decoder] * 2


def test_stochastic_depth_rises_from_none_and_acts_in_training_only() -> None:
    model, images = small_model(num_blocks=3, drop_path=0.6), random_images()
    rates = [block.get_submodule("drop_path1") for block in model.decoder.blocks]
    assert [getattr(rate, "drop_prob", 0.0) for rate in rates] == pytest.approx([0.0, 0.3, 0.6])
    assert torch.equal(model(images).logits, model(images).logits)
    model.train()
    assert not torch.equal(model(images).logits, model(images).logits)


def test_a_step_adds_one_parameter_of_tokens_and_keeps_the_others() -> None:
    model = small_model([3])
    before = {name: x.clone() for name, x in model.state_dict().items()}
    model.grow(2)
    after = model.state_dict()
    added = {f"classifier.{kind}.1": shape for kind, shape in SHAPES.items()}
    assert {name: tuple(after[name].shape) for name in after.keys() - before.keys()} == added
    assert all(torch.equal(after[name], x) for name, x in before.items())
    assert model.num_classes == [3, 2]
    assert (
        sum(p.numel() for p in model.parameters())
        == sum(p.numel() for p in small_model([3]).parameters()) + 28
    )


SHAPES = {"tokens": (2, 12), "scales": (2,), "shifts": (2,)}


def test_with_weight_transfer_new_tokens_are_copies_of_the_background_and_their_affine_is_one_and_zero() -> (
    None
):
    model = small_model([3])
    with torch.no_grad():
        model.classifier.scales[0].fill_(3)
        model.classifier.shifts[0].fill_(2)
    model.grow(2, start="background")
    tokens = model.classifier.class_tokens()
    assert torch.equal(tokens[3], tokens[0])
    assert torch.equal(tokens[4], tokens[0])
    assert model.classifier.scales[1].tolist() == [1, 1]
    assert model.classifier.shifts[1].tolist() == [0, 0]
    with torch.no_grad():
        model.classifier.tokens[1].add_(1)
    torch.testing.assert_close(model.classifier.class_tokens()[3] - tokens[0], torch.ones(12))


def test_without_weight_transfer_new_tokens_are_their_own() -> None:
    model = small_model([3])
    model.grow(2)
    tokens = model.classifier.class_tokens()
    assert not torch.isclose(tokens[3], tokens[0]).any()
    assert not torch.isclose(tokens[3], tokens[4]).any()


def test_the_gradient_of_a_token_reaches_the_step_it_belongs_to() -> None:
    model = small_model([3, 2])
    model(random_images()).class_tokens[2:4].sum().backward()
    base, later = (tokens.grad for tokens in model.classifier.tokens)
    assert base is not None
    assert later is not None
    assert base[:, 0].tolist() == [0, 0, 1]
    assert later[:, 0].tolist() == [1, 0]


def test_the_state_of_a_grown_model_fits_a_model_built_with_the_sizes_of_its_steps() -> None:
    model, images = small_model([3]), random_images()
    model.grow(2, start="background")
    again = small_model([3, 2])
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(images).logits, model(images).logits)
    with pytest.raises(RuntimeError, match="classifier"):
        small_model([5]).load_state_dict(model.state_dict())


def test_backbone_and_classifier_parameters_are_the_encoder_and_the_classes() -> None:
    model = small_model([3, 2])
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)].partition(".")[0] for p in model.backbone_parameters()} == {"backbone"}
    assert {names[id(p)].partition(".")[0] for p in model.classifier_parameters()} == {"classifier"}
    rest = len(names) - len(model.backbone_parameters()) - len(model.classifier_parameters())
    assert rest == len(list(model.decoder.parameters())) > 0


def test_every_parameter_has_a_gradient_so_that_ranks_need_not_look_for_unused_ones() -> None:
    model = small_model([3, 2], drop_path=0.0).train()
    output: SegOutput = model(random_images())
    (output.logits[:, 0] ** 2).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_logits_are_float32_under_autocast() -> None:
    model, images = small_model(), random_images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(images)
    assert output.logits.dtype == output.grid_logits.dtype == torch.float32
    exact = model(images)
    agreement = F.cosine_similarity(output.grid_logits.flatten(), exact.grid_logits.flatten(), dim=0)
    assert agreement > 0.99


@pytest.mark.parametrize(
    ("name", "own", "grid"),
    [
        ("deeplabv3", {"backbone": "test_resnet", "output_stride": 8}, (2, 3, 4, 4)),
        (
            "segmenter",
            {"backbone": "test_vit", "patch_size": 16, "num_blocks": 1, "num_heads": 4},
            (2, 3, 2, 2),
        ),
    ],
)
def test_a_model_is_built_by_name_from_its_own_options(
    name: str, own: dict[str, Any], grid: tuple[int, ...]
) -> None:
    options = MODELS[name].Options(name=name, pretrained=False, channels=8, **own)
    model = build_model(options, [3], image_size=32)
    assert type(model) is MODELS[name]
    assert model.eval()(random_images()).grid_logits.shape == grid


def test_position_embeddings_of_a_file_are_resized_to_the_crop(tmp_path: Path) -> None:
    source: Any = timm.create_model("test_vit")  # 160 pixels, patches of 16
    with torch.no_grad():
        source.pos_embed.copy_(torch.linspace(-1, 1, source.pos_embed.numel()).view_as(source.pos_embed))
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    vit: Any = build_vit("test_vit", str(tmp_path / "weights.pth"), image_size=64)
    assert vit.pos_embed.shape == (1, 1 + 16, 64)
    grid = source.pos_embed[:, 1:].unflatten(1, (10, 10)).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, (4, 4), mode="bicubic", antialias=True)
    torch.testing.assert_close(vit.pos_embed[:, 1:], expected.flatten(2).transpose(1, 2))
    assert torch.equal(vit.pos_embed[:, :1], source.pos_embed[:, :1])
    ours, theirs = vit.state_dict(), source.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name != "pos_embed")


def test_at_the_size_of_the_file_the_encoder_is_that_of_timm(tmp_path: Path) -> None:
    source: Any = timm.create_model("test_vit").eval()
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    vit = build_vit("test_vit", str(tmp_path / "weights.pth"), image_size=160).eval()
    images = random_images(160, 160).float() / 255
    torch.testing.assert_close(vit.forward_features(images), source.forward_features(images))


def test_a_patch_size_of_its_own_resizes_the_patch_embedding(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "weights.pth")
    vit: Any = build_vit("test_vit", str(tmp_path / "weights.pth"), image_size=64, patch_size=8)
    assert vit.patch_embed.proj.weight.shape[2:] == (8, 8)
    assert vit.pos_embed.shape == (1, 1 + 64, 64)


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_vit_relpos", "beit_base_patch16_224", "vit_small_resnet26d_224"]
)
def test_a_backbone_that_is_no_plain_vit_is_refused_and_told_what_is_possible(name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"'{name}' is no plain ViT.*vit_base_patch16_384.*vit_base_patch16_dinov3"
    ):
        build_vit(name, False, image_size=32)


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("vit_tiny_patch16_dinov3_qkvb", 5),  # rotary positions, a class token and four registers
        ("eva02_tiny_patch14_224", 1),  # embedded and rotary positions
        ("vit_pe_spatial_tiny_patch16_512", 1),
        ("test_vit3", 1),  # pools patches by attention, which a decoder has no use for
    ],
)
def test_newer_vits_give_masks_of_images_of_any_size_and_train_all_their_weights(
    name: str, prefix: int
) -> None:
    model = small_model([2, 1], backbone=name, patch_size=None)
    assert model.backbone.num_prefix_tokens == prefix
    images, cell = random_images(75, 51), model.cell
    output = model(images)
    assert output.logits.shape == (2, 3, 75, 51)
    assert output.features.shape[2:] == (-(-75 // cell), -(-51 // cell))
    output.logits.square().mean().backward()
    assert [key for key, p in model.backbone.named_parameters() if p.grad is None] == []


def test_an_unknown_backbone_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"model\.backbone: timm has no model 'vit_base_patch17'"):
        build_vit("vit_base_patch17", False, image_size=32)


def test_weights_that_cannot_be_fetched_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(ValueError, match=r"'test_vit' could not be fetched \(no network\).*pretrained=PATH"):
        build_vit("test_vit", True, image_size=32)


def test_a_file_of_another_vit_is_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_vit3").state_dict(), tmp_path / "weights.pth")
    with pytest.raises(
        ValueError, match=r"model\.pretrained: .*weights\.pth' does not hold weights of 'test_vit'"
    ):
        build_vit("test_vit", str(tmp_path / "weights.pth"), image_size=32)


def test_heads_that_do_not_divide_the_channels_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"model\.channels: 13 is no multiple .* 2 heads \(model\.num_heads\)"
    ):
        small_model(channels=13)
