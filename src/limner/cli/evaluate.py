"""``limner evaluate``: a model's captions of a data set, scored; or two models on the same pictures."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from limner import __version__
from limner.cli.parse import parse
from limner.cli.telling import answers, bar, json_line, made, note
from limner.config.evaluate import EvaluateConfig
from limner.runs.models import find_model

if TYPE_CHECKING:
    from limner.data.records import Record
    from limner.evaluation import DocumentFrequency
    from limner.evaluation.any_captioner import Describes
    from limner.evaluation.captioning import CaptionLog, Said
    from limner.evaluation.comparison import Difference


def run(argv: list[str]) -> int:
    config = parse(EvaluateConfig, argv, "limner evaluate")
    from limner.evaluation.captioning import CaptionLog, shard_file

    models = [config.before, config.after] if config.before and config.after else list(config.targets)
    records, frequencies = _records(config)
    facts = _facts(config, [str(model) for model in models], len(records))
    folder = config.out or _default_folder(config, [str(model) for model in models])
    names = ("before", "after") if config.before else ("captions",)
    log = CaptionLog(made(folder), facts, config.resume, [shard_file(name, config.parts) for name in names])
    if config.before and config.after:
        return _compare(config, records, frequencies, log, facts)
    return _evaluate(config, records, frequencies, log, facts)


def _evaluate(
    config: EvaluateConfig,
    records: list[Record],
    frequencies: DocumentFrequency | None,
    log: CaptionLog,
    facts: dict[str, Any],
) -> int:
    from limner.cli.score import print_scores, sight_sentence
    from limner.evaluation.assessment import assess
    from limner.evaluation.report import evaluation_report

    said = _said(config, config.targets[0], "captions", records, log)
    if said is None:
        return 0
    expected = {record.image_id: record.captions for record in records if record.image_id in said}
    assessment = assess(
        {key: [one.caption] for key, one in said.items()},
        expected,
        document_frequency=frequencies,
        meteor=config.meteor,
        seed=config.seed,
        further=_clip_scores(config, [record for record in records if record.image_id in said], said),
    )
    result = assessment.as_dict(per_image=True) | {"settings": facts}
    scores = json.dumps(result, indent=1, ensure_ascii=False)
    (log.folder / "scores.json").write_text(scores, encoding="utf-8")
    title = f"{facts['models'][0]} on {' '.join(config.dataset)} ({config.split})"
    document = evaluation_report(title, facts, assessment, said, records, sight_sentence(assessment))
    (log.folder / "report.html").write_text(document, encoding="utf-8")
    if config.json_:
        print(json_line(assessment.as_dict() | {"settings": facts, "folder": str(log.folder)}))
    else:
        print_scores(assessment, answers())
        print(f"Report: {log.folder / 'report.html'}")
    return 0


def _compare(
    config: EvaluateConfig,
    records: list[Record],
    frequencies: DocumentFrequency | None,
    log: CaptionLog,
    facts: dict[str, Any],
) -> int:
    from limner.evaluation.comparison import compare, score_pair
    from limner.evaluation.meteor import find_meteor
    from limner.evaluation.report import comparison_report

    assert config.before and config.after
    before = _said(config, config.before, "before", records, log)
    after = _said(config, config.after, "after", records, log)
    if before is None or after is None:
        return 0
    records = [record for record in records if record.image_id in before and record.image_id in after]
    differences, tables = [], None
    if all(record.captions for record in records):
        texts = [{r.image_id: said[r.image_id].caption for r in records} for said in (before, after)]
        expected = {record.image_id: record.captions for record in records}
        tables = score_pair(texts[0], texts[1], expected, find_meteor(config.meteor), frequencies)
        differences = compare(*tables, seed=config.seed)
    pictures = [_pair(record, before, after) for record in records]
    for row, picture in enumerate(pictures if tables else ()):
        for side, table in zip(("before", "after"), tables or (), strict=True):
            picture[f"{side}_scores"] = {name: float(values[row]) for name, values in table.per_image.items()}
    result = {"differences": [d.as_dict() for d in differences], "pictures": pictures, "settings": facts}
    comparison = json.dumps(result, indent=1, ensure_ascii=False)
    (log.folder / "comparison.json").write_text(comparison, encoding="utf-8")
    title = f"{config.before} before, {config.after} after"
    document = comparison_report(title, facts, differences, before, after, records, tables)
    (log.folder / "report.html").write_text(document, encoding="utf-8")
    if config.json_:
        print(json_line(result | {"folder": str(log.folder)}))
        return 0
    _print_comparison(differences, pictures, answers())
    print(f"Report: {log.folder / 'report.html'}")
    return 0


def _clip_scores(config: EvaluateConfig, records: list[Record], said: Mapping[str, Said]) -> dict[str, Any]:
    if config.clip is None:
        return {}
    from limner.device import choose
    from limner.evaluation.clipscore import Alignment, clip_scores

    alignment = Alignment(config.clip, device=choose(config.device, "fp32").device)
    captions = [said[record.image_id].caption for record in records]
    return clip_scores(alignment, [record.image for record in records], captions, [r.captions for r in records])


def _pair(record: Record, before: Mapping[str, Said], after: Mapping[str, Said]) -> dict[str, Any]:
    from limner.evaluation.comparison import first_difference

    one, other = before[record.image_id].caption, after[record.image_id].caption
    return {
        "image": record.image_id,
        "expected": record.captions,
        "before": one,
        "after": other,
        "first_differing_word": first_difference(one, other),
    }


def _print_comparison(differences: list[Difference], pictures: list[dict[str, Any]], console: Console) -> None:
    if differences:
        scores = Table(box=None, pad_edge=False)
        for heading in ("metric", "before", "after", "difference", "95 % interval", "p", "better"):
            scores.add_column(heading, justify="left" if heading in ("metric", "better") else "right")
        for d in differences:
            interval = f"{d.low:+.4f} to {d.high:+.4f}"
            values = f"{d.before:.4f}", f"{d.after:.4f}", f"{d.difference:+.4f}", interval, f"{d.p_value:.3f}"
            scores.add_row(d.metric, *values, d.better)
        console.print(scores)
    same = sum(picture["first_differing_word"] is None for picture in pictures)
    console.print(f"{len(pictures):,} pictures, {same:,} with the same caption.", markup=False, highlight=False)
    shown = Table(pad_edge=False)
    for heading in ("picture", "expected", "before", "after"):
        shown.add_column(heading, overflow="fold")
    for picture in pictures[:10]:
        expected = picture["expected"][0] if picture["expected"] else ""
        cells = (picture["image"], expected, picture["before"], _marked(picture))
        shown.add_row(*(cell.replace("[", r"\[") for cell in cells))
    console.print(shown)


def _marked(picture: dict[str, Any]) -> str:
    """The caption after, with the first word that differs between asterisks."""
    words, number = picture["after"].split(), picture["first_differing_word"]
    if number is None:
        return "(the same)"
    return " ".join([*words[:number], f"*{words[number] if number < len(words) else ''}*", *words[number + 1 :]])


# ---- the model's captions ---------------------------------------------------------------------------------------


def _said(
    config: EvaluateConfig, model: str, name: str, records: list[Record], log: CaptionLog
) -> dict[str, Said] | None:
    """The captions of all records; None where other shards are not done yet."""
    from limner.evaluation.captioning import caption_records

    settings = {
        "num_beams": config.num_beams,
        "max_new_tokens": config.max_length,
        "consensus": config.consensus,
    }
    bad: dict[str, str] | None = {} if config.skip_bad_images else None
    phase = f"captioning ({name})" if config.before else "captioning"
    with bar() as progress:
        said = caption_records(
            lambda: _open(config, model),
            records,
            log,
            name=name,
            shard=config.parts,
            batch_size=config.batch_size,
            settings={key: value for key, value in settings.items() if value is not None},
            progress=lambda done, total: progress(phase, done, total, "pictures"),
            bad=bad,
        )
    for reason in (bad or {}).values():
        note(f"Left out: {reason}")
    missing = len(records) - len(said) - len(bad or {})
    if config.parts[1] > 1 and missing:
        note(f"Part {config.shard} is done; {missing:,} pictures wait for the other parts.")
        return None
    if not said:
        raise ValueError("None of the pictures could be read.")
    return said


def _open(config: EvaluateConfig, model: str) -> Describes:
    from limner.evaluation.any_captioner import open_captioner

    path = find_model(model, config.runs_dir, "captioner")
    if _is_checkpoint(path):
        return _open_checkpoint(Path(path), config)
    revision = config.revision if path == model else None
    return open_captioner(
        path, config.device, config.precision, config.quantize, threads=config.threads, revision=revision
    )


def _is_checkpoint(path: str) -> bool:
    return (Path(path) / "manifest.json").is_file() and Path(path).parent.name == "checkpoints"


def _open_checkpoint(folder: Path, config: EvaluateConfig) -> Describes:
    from limner.decoding import step_model
    from limner.decoding.captioner import Captioner
    from limner.device import choose
    from limner.training.checkpoint_model import restored_captioner

    choice = choose(config.device, "fp32" if config.precision == "auto" else config.precision, config.threads)
    vlm = restored_captioner(folder, choice.device, choice.dtype)
    return Captioner(vlm, choice, step_model(vlm.language_model, quantize=config.quantize))


# ---- what it is evaluated on ------------------------------------------------------------------------------------


def _records(config: EvaluateConfig) -> tuple[list[Record], DocumentFrequency | None]:
    """The pictures, and CIDEr's document frequencies: of the whole split, however few pictures are drawn."""
    if not config.dataset:
        return _pictures(config.targets), None
    from limner.data.catalogue import load_splits
    from limner.data.records import sampled
    from limner.evaluation import DocumentFrequency

    records = load_splits(config, note)[config.split]
    if not records:
        raise ValueError(f"{' '.join(config.dataset)} has no pictures in its {config.split} split; try --split.")
    frequencies = DocumentFrequency.of(record.captions for record in records)
    return sampled(records, config.sample, config.seed), frequencies


def _pictures(names: tuple[str, ...]) -> list[Record]:
    """Picture files and folders of them, without captions."""
    from limner.data.images import EXTENSIONS
    from limner.data.records import Record, text_of

    found: list[Path] = []
    for name in map(Path, names):
        if name.is_dir():
            found += sorted(path for path in name.rglob("*") if path.suffix.lower() in EXTENSIONS)
        elif name.is_file():
            found.append(name)
        else:
            raise FileNotFoundError(f"There is no file or folder {name}.")
    if not found:
        raise FileNotFoundError(f"There are no pictures in {' '.join(names)}.")
    return [Record(path, [], text_of(str(path))) for path in dict.fromkeys(found)]


def _facts(config: EvaluateConfig, models: list[str], num_records: int) -> dict[str, Any]:
    """Everything that the captions depend on; a resumed evaluation must have the same."""
    import torch
    import transformers

    from limner.evaluation.any_captioner import fingerprint

    paths = [find_model(model, config.runs_dir, "captioner") for model in models]
    return {
        "models": models,
        "fingerprints": [fingerprint(path, config.revision) for path in paths],
        "revision": config.revision,
        "dataset": list(config.dataset) or list(config.targets),
        "split": config.split if config.dataset else None,
        "sample": config.sample,
        "pictures": num_records,
        "num_beams": config.num_beams or "as the model says",
        "consensus": config.consensus,
        "max_length": config.max_length or "as the model says",
        "precision": config.precision,
        "quantize": config.quantize,
        "seed": config.seed,
        "limner": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": sys.version.split()[0],
    }


def _default_folder(config: EvaluateConfig, models: list[str]) -> Path:
    subject = "+".join(_short(name) for name in (config.dataset or ("pictures",)))
    return Path("evaluations") / f"{'-vs-'.join(map(_short, models))}-{subject}-{config.split}"


def _short(name: str) -> str:
    """The telling part of a model's or data set's name: of runs/NAME/model it is NAME."""
    parts = [part for part in Path(name).parts if part not in ("/", ".", "..", "model", "checkpoints", "runs")]
    kept = parts[-2:] if "checkpoints" in Path(name).parts else parts[-1:]
    return "-".join(kept).replace("=", "-") or "model"
