"""The networks: a ModelSpec in, a Keras 3 model out that takes uint8 faces as `dataset_tools.prepare` gives them.

Scaling is the first layer inside the model, so that nobody can forget it; outputs are logits, since a temperature and a
loss want those. Every network is `scale → base → head`, the base a model of its own by that name: freezing is then one
assignment, whatever the architecture. No custom layer, no Lambda: a `.keras` file loads in safe mode.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
from keras import layers

from dataset_tools import storage
from schemas.model import ModelSpec

Tensor = Any
_SMALL_PX = 96
"""Below this side a residual network keeps its first resolution: a 7×7 stride-2 stem with pooling would leave 48 px
faces as 12 × 12 before the first block."""
_MOMENTUM = 0.9
"""Of BatchNorm from scratch: the .999 of MobileNetV2 needs thousands of steps before validation means anything."""


class ModelError(ValueError):
    """A model that does not exist, or weights that are missing or do not fit; one line that names the next step."""


def build(name: str, spec: ModelSpec, weights: str | None = None, dropout: float = 0.2) -> keras.Model:
    """(n, input_px, input_px, channels) uint8 → (n, classes) float32 logits.

    weights: a path or URL: an ImageNet file of keras.applications, or a `.keras` model of this architecture, of which
    the base is taken, and the head where the classes are as many. Raises ModelError, which names the file to fetch
    where one is missing.
    """
    if name not in MODELS:
        raise ModelError(f"no model is called {name!r}: choose {', '.join(MODELS)}")
    channels = 1 if spec.colour == "grey" else 3
    shape = (spec.input_px, spec.input_px, channels)
    with tempfile.TemporaryDirectory(prefix="facemill-weights-") as folder:
        local = _fetch(name, weights, spec.input_px, folder) if weights else None
        scratch = local is None or local.suffix == ".keras"
        imagenet = None if scratch else str(local)
        try:
            model = MODELS[name](shape, len(spec.label_names), imagenet, dropout)
        except ValueError as error:
            raise ModelError(
                f"{name} at {spec.input_px} px, weights {weights or 'none'}: {_first_line(error)}"
            ) from None
        if local is not None and scratch:
            _take_over(model, local)
    if scratch:
        for layer in batchnorms(model):
            layer.momentum = _MOMENTUM
    return model


def mobilenet_v2(shape: tuple[int, int, int], classes: int, imagenet: str | None, dropout: float) -> keras.Model:
    """Sandler et al., 2018, at width 1.0: 2.2 M parameters."""
    base = keras.applications.MobileNetV2(input_shape=(*shape[:2], 3), include_top=False, weights=imagenet)
    return _assemble(shape, classes, base, _pooled, dropout, layers.Rescaling(1 / 127.5, offset=-1.0, name="scale"))


def resnet50(shape: tuple[int, int, int], classes: int, imagenet: str | None, dropout: float) -> keras.Model:
    """He et al., 2016: 23.6 M parameters."""
    base = keras.applications.ResNet50(input_shape=(*shape[:2], 3), include_top=False, weights=imagenet)
    first = base.get_layer("conv1_conv")
    kernel, *bias = first.get_weights()
    if imagenet:  # these weights expect blue first; turning the kernel round once keeps RGB everywhere
        first.set_weights([kernel[:, :, ::-1, :], *bias])
    mean = layers.Rescaling(1.0, offset=[-123.68, -116.779, -103.939], name="scale")
    return _assemble(shape, classes, base, _pooled, dropout, mean)


def resnet18(shape: tuple[int, int, int], classes: int, imagenet: str | None, dropout: float) -> keras.Model:
    """Blocks 2-2-2-2 of 64-128-256-512: 11.2 M parameters."""
    _no_imagenet("resnet18", imagenet)
    return _assemble(shape, classes, _residual(shape, (2, 2, 2, 2)), _pooled, dropout)


def resnet34(shape: tuple[int, int, int], classes: int, imagenet: str | None, dropout: float) -> keras.Model:
    """Blocks 3-4-6-3 of 64-128-256-512: 21.3 M parameters."""
    _no_imagenet("resnet34", imagenet)
    return _assemble(shape, classes, _residual(shape, (3, 4, 6, 3)), _pooled, dropout)


def alexnet_light(shape: tuple[int, int, int], classes: int, imagenet: str | None, dropout: float) -> keras.Model:
    """Five unpadded convolutions, each with 2×2 max pooling: 224 → 108 → 51 → 23 → 10 → 4, so 4·4·128 = 2048 values."""
    _no_imagenet("alexnet_light", imagenet)
    inputs = x = keras.Input(shape)
    for filters, side in ((16, 9), (32, 7), (64, 5), (128, 3), (128, 3)):
        x = layers.Conv2D(filters, side, use_bias=False)(x)
        x = layers.Activation("relu")(layers.BatchNormalization()(x))
        x = layers.MaxPooling2D(2)(x)

    def dense(x: Tensor) -> Tensor:
        x = layers.Flatten()(x)
        for _ in range(2):
            x = layers.Dropout(dropout)(layers.Dense(1024, activation="relu")(x))
        return x

    return _assemble(shape, classes, keras.Model(inputs, x, name="base"), dense, 0.0)


def compact48(shape: tuple[int, int, int], classes: int, imagenet: str | None, dropout: float) -> keras.Model:
    """Our own for 48 px faces: one convolution to 24 px, then residual blocks of 64, 128 and 192 at 24, 12 and 6 px.

    Plain 3×3 convolutions keep a CPU's vector and tile units busy, which depthwise ones do not; half of the arithmetic
    is at 24 px, where a face still has its mouth. Channel attention (Hu et al., 2018), left out where it would cost
    more time than it is worth, is 1 % of the parameters; the blocks start as identities.
    """
    _no_imagenet("compact48", imagenet)
    inputs = x = keras.Input(shape)
    x = layers.Activation("relu")(_conv_norm(x, 64, 5, stride=2))
    for stage, (filters, blocks) in enumerate(((64, 2), (128, 2), (192, 1))):
        for block in range(blocks):
            x = _block(x, filters, stride=2 if block == 0 and stage > 0 else 1, attention=stage > 0)
    return _assemble(shape, classes, keras.Model(inputs, x, name="base"), _pooled, dropout)


def linear(shape: tuple[int, int, int], classes: int, imagenet: str | None, dropout: float) -> keras.Model:
    """Pixels to classes and nothing between: the floor that a network has to leave behind, and what tests train."""
    _no_imagenet("linear", imagenet)
    inputs = keras.Input(shape)
    return _assemble(shape, classes, keras.Model(inputs, layers.Flatten()(inputs), name="base"), _as_is, dropout)


MODELS: dict[str, Callable[[tuple[int, int, int], int, str | None, float], keras.Model]] = {
    "mobilenet_v2": mobilenet_v2,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "alexnet_light": alexnet_light,
    "compact48": compact48,
    "linear": linear,
}


def mirrored(model: keras.Model) -> keras.Model:
    """The mean of a model's logits for a face and for its mirror image, as one model of the same weights.

    Twice the time. An operation of Keras and no layer of our own, so that the file loads in safe mode.
    """
    model.name = "network"
    faces = keras.Input(model.input_shape[1:], dtype="uint8", name="faces")
    both = [model(faces), model(keras.ops.flip(faces, axis=2))]
    return keras.Model(faces, layers.Average(name="logits")(both))


def network_of(model: keras.Model) -> keras.Model:
    """The network inside a mirrored model, or the model itself."""
    return next((layer for layer in model.layers if layer.name == "network"), model)


def base_of(model: keras.Model) -> keras.Model:
    """The part of a model that may come pretrained."""
    return model.get_layer("base")


def set_stage(model: keras.Model, *, base: bool, batchnorm: bool) -> None:
    """What trains from now on: the base, or the head alone; and whether the base's BatchNorm does.

    A frozen BatchNorm also stops using batch statistics: Keras runs it as in inference.
    """
    base_of(model).trainable = base
    for layer in batchnorms(base_of(model)):  # by itself: Keras passes a flag down only where the parent's changes
        layer.trainable = base and batchnorm


def batchnorms(model: keras.Model) -> list[layers.BatchNormalization]:
    """Every BatchNorm of a model, at any depth."""
    return [layer for layer in model._flatten_layers() if isinstance(layer, layers.BatchNormalization)]


def _assemble(
    shape: tuple[int, int, int],
    classes: int,
    base: keras.Model,
    head: Callable[[Tensor], Tensor],
    dropout: float,
    scale: layers.Layer | None = None,
) -> keras.Model:
    base.name = "base"
    inputs = keras.Input(shape, dtype="uint8", name="faces")
    # The scaling computes in the policy's type, but must see whole numbers first: bfloat16 has no 8 exact bits to lose.
    x = layers.Identity(dtype="float32")(inputs)
    if base.input_shape[-1] == 3 and shape[-1] == 1:
        x = layers.Concatenate(name="grey_to_rgb")([x, x, x])
    x = head(base((scale or layers.Rescaling(1 / 127.5, offset=-1.0, name="scale"))(x)))
    if dropout:
        x = layers.Dropout(dropout)(x)
    return keras.Model(inputs, layers.Dense(classes, dtype="float32", name="logits")(x))


def _as_is(x: Tensor) -> Tensor:
    return x


def _pooled(x: Tensor) -> Tensor:
    return layers.GlobalAveragePooling2D()(x)


def _residual(shape: tuple[int, int, int], blocks: tuple[int, ...]) -> keras.Model:
    inputs = x = keras.Input(shape)
    if shape[0] < _SMALL_PX:
        x = layers.Activation("relu")(_conv_norm(x, 64, 3))
    else:
        x = layers.Activation("relu")(_conv_norm(x, 64, 7, stride=2))
        x = layers.MaxPooling2D(3, 2, padding="same")(x)
    for stage, count in enumerate(blocks):
        for block in range(count):
            x = _block(x, 64 * 2**stage, stride=2 if block == 0 and stage > 0 else 1)
    return keras.Model(inputs, x, name="base")


def _block(x: Tensor, filters: int, *, stride: int, attention: bool = False) -> Tensor:
    """Two 3×3 convolutions beside a shortcut, which is a 1×1 convolution where size or channels change."""
    y = layers.Activation("relu")(_conv_norm(x, filters, 3, stride))
    # gamma starts at 0, so a block starts as its shortcut and a deep stack as a shallow one (Goyal et al., 2017).
    y = _conv_norm(y, filters, 3, gamma="zeros")
    if attention:
        squeezed = layers.AveragePooling2D(y.shape[1])(y)
        squeezed = layers.Conv2D(max(filters // 8, 8), 1, activation="relu")(squeezed)
        y = layers.Multiply()([y, layers.Conv2D(filters, 1, activation="sigmoid")(squeezed)])
    if stride != 1 or x.shape[-1] != filters:
        x = _conv_norm(x, filters, 1, stride)
    return layers.Activation("relu")(layers.Add()([x, y]))


def _conv_norm(x: Tensor, filters: int, side: int, stride: int = 1, gamma: str = "ones") -> Tensor:
    convolved = layers.Conv2D(filters, side, stride, padding="same", use_bias=False, kernel_initializer="he_normal")(x)
    return layers.BatchNormalization(gamma_initializer=gamma)(convolved)


def _no_imagenet(name: str, imagenet: str | None) -> None:
    if imagenet:
        raise ModelError(f"there are no ImageNet weights for {name}: give a model.keras of it, or train from scratch")


def _fetch(name: str, weights: str, input_px: int, folder: str) -> Path:
    """The weights as a local file, since h5py opens no URL. Keras reads the format from the suffix, so that stays."""
    if not storage.exists(weights):
        raise ModelError(f"there is no weights file {storage.redact(weights)}{_what_to_fetch(name, input_px)}")
    if storage.is_folder(weights):
        weights = storage.join(weights, "model.keras")
    url = storage.normalize(weights)
    if not url.endswith((".h5", ".keras")):
        raise ModelError(f"{storage.redact(url)} must end in .h5, .weights.h5 or .keras: its suffix tells the format")
    if storage.is_local(url):
        return Path(url)
    local = Path(folder) / url.rsplit("/", 1)[-1]
    local.write_bytes(storage.read_bytes(url))
    return local


def _what_to_fetch(name: str, input_px: int) -> str:
    if name == "mobilenet_v2":
        # keras.applications has files for five sides; the nearest serves any input.
        side = min((96, 128, 160, 192, 224), key=lambda known: abs(known - input_px))
        file = f"mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_{side}_no_top.h5"
    elif name == "resnet50":
        file = "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
    else:
        return f": there are no ImageNet weights for {name}; --weights none trains from scratch"
    return (
        f": fetch {file} (keras.applications) where the network allows it, put it there or name its place with "
        "--weights PATH|URL; --weights none --set head_epochs=0 trains from scratch"
    )


def _take_over(model: keras.Model, path: Path) -> None:
    """Copy base and head from a model of the same architecture; its head may have other classes, and then stays."""
    source = network_of(keras.models.load_model(path, compile=False, safe_mode=True))
    mine, theirs = base_of(model).get_weights(), base_of(source).get_weights()
    if [one.shape for one in mine] != [one.shape for one in theirs]:
        raise ModelError(f"{path.name} is of another architecture: its base has other tensors")
    base_of(model).set_weights(theirs)
    head, their_head = model.get_layer("logits"), source.get_layer("logits")
    if [one.shape for one in head.get_weights()] == [one.shape for one in their_head.get_weights()]:
        head.set_weights(their_head.get_weights())


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300]
