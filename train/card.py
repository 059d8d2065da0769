"""The model card: what a model is, what it was trained on and how, what it reaches and where it must not be trusted."""

from dataclasses import replace
from typing import Any

from schemas.model import ModelSpec
from train.export import TOLERANCE, Agreement
from train.recipes_io import About, Recipe, flat

_EXPORTS = "## Exports"


def model_card(
    spec: ModelSpec,
    recipe: Recipe,
    about: About,
    figures: dict[str, Any],
    counts: dict[str, int],
    parameters: int,
    command: str,
) -> str:
    """README.md as text. figures: metrics.json. counts: training faces by class name. parameters: of the network."""
    # A card travels, this machine's folders do not.
    recipe = replace(recipe, weights=recipe.weights.rsplit("/", 1)[-1], teacher=recipe.teacher.rsplit("/", 1)[-1])
    changed = {key: one for key, one in flat(recipe.to_dict()).items() if one != flat(Recipe().to_dict())[key]}
    lines = [
        "---",
        "library_name: keras",
        "pipeline_tag: image-classification",
        "tags: [facial-expression]",
        "---",
        "",
        f"# {about.title or spec.architecture} ({spec.label_set})",
        "",
        *([about.terms, ""] if about.terms else []),
        f"`{spec.architecture}`, {parameters:,} parameters, for {len(spec.label_names)} expressions: "
        f"{', '.join(spec.label_names)}. Input: faces of {spec.input_px} × {spec.input_px} px, "
        f"{'grey' if spec.colour == 'grey' else 'RGB'}, uint8"
        + (", histogram-equalised" if spec.equalise else "")
        + "; scaling is inside the model. Output: logits.",
        "",
        "## Figures on the validation split",
        "",
        "| faces | accuracy | balanced accuracy | macro F1 | weighted F1 | log loss | ECE |",
        "|---|---|---|---|---|---|---|",
        "| {faces:,} | {accuracy:.4f} | {balanced_accuracy:.4f} | {macro_f1:.4f} | {weighted_f1:.4f} | {log_loss:.4f} "
        "| {ece:.4f} |".format(**figures),
        "",
        "| expression | training faces | validation faces | precision | recall | F1 |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {counts.get(name, 0):,} | {one['support']:,.0f} | {one['precision']:.3f} | {one['recall']:.3f} "
        f"| {one['f1']:.3f} |"
        for name, one in figures["per_class"].items()
    ]
    lines += [
        "",
        "![Confusion matrix](plots/confusion_matrix.svg)",
        "",
        "![Reliability](plots/reliability.svg)",
        "",
        "The best epoch was chosen by these faces, and the temperature fitted on them: a test split that training "
        "never saw says more (`just evaluate`). What the model says of each of them stands in "
        "`predictions_validation.parquet`.",
        "",
        "## Training",
        "",
        f"    {command}",
        "",
        "![Learning curves](plots/learning_curves.svg)",
        "",
        f"Data set fingerprint `{spec.dataset_fingerprint}`. Recipe, where it differs from the defaults:",
        "",
        *[f"- `{key} = {value!r}`" for key, value in changed.items()],
        "",
        "## Files",
        "",
        f"`model.keras` is the master (sha256 `{spec.fingerprint}`). `model.json` says how a crop is prepared; "
        f"probabilities are softmax(logits / {spec.temperature:.4f}), and a face whose best is below "
        f"{spec.threshold:g} is not sure. `history.csv` has a row for each epoch.",
        "",
        "## Limits",
        "",
        "An expression is what a face shows, not what a person feels. Labels are opinions of annotators; classes with "
        "few faces are recognised less well, and faces unlike those of the data set perhaps not at all. Crops "
        "must be cut as in model.json. Not for decisions about people.",
        "",
    ]
    return "\n".join(lines)


def with_export(card: str, file: str, agreement: Agreement, size_bytes: int) -> str:
    """The card with a row for this export, in place of an earlier one of the same file."""
    spread = f"{agreement.spread:.2f}" + ("" if agreement.tells else ": too little to tell")
    row = (
        f"| `{file}` | {size_bytes / 1e6:.1f} MB | {agreement.largest_difference:.1e} | {agreement.faces} | {spread} |"
    )
    lines = card.splitlines()
    if _EXPORTS not in lines:
        lines += [*([""] if lines else []), *_exports_head()]
    at = lines.index(_EXPORTS)
    rows = [number for number in range(at, len(lines)) if lines[number].startswith(("| `", "|---"))]
    known = [number for number in rows if lines[number].startswith(f"| `{file}` |")]
    if known:
        lines[known[0]] = row
    else:
        lines.insert(rows[-1] + 1, row)
    return "\n".join(lines) + "\n"


def _exports_head() -> list[str]:
    return [
        _EXPORTS,
        "",
        "Each was held against `model.keras` on real faces: every face has the same best class, and no probability "
        f"differs by more than {TOLERANCE:g}. The spread is how far the probabilities of the faces lie apart; a "
        "comparison of faces that all get the same says nothing.",
        "",
        "| file | size | largest difference | faces | spread |",
        "|---|---|---|---|---|",
    ]
