"""An import from beginning to end: a published checkpoint and a card in YAML in, bundle out."""

from datetime import UTC, datetime
from pathlib import Path

from landseg.config import ImportConfig, legend_of, load_config
from landseg.errors import BundleError
from landseg.model.bundle import Bundle, Card, check_replaceable, write_bundle
from landseg.model.convert import read_checkpoint


def import_model(checkpoint: Path, card: Path, out: Path, *, overwrite: bool) -> Bundle:
    """Make a bundle of a PSPNet that another codebase trained.

    Parameters
    ----------
    checkpoint
        Its weights, in a form that `landseg.model.convert.read_checkpoint` knows.
    card
        YAML file of what the weights can't say: an `ImportConfig`.
    out
        Folder of the bundle; its name is the model's.
    overwrite
        Whether to replace a bundle that is there.

    Raises
    ------
    ConfigError
        If ``card`` has an unknown or ill-typed key.
    UsageError
        If something is at ``out`` that may not be replaced.
    BundleError
        If the weights can't be used, or the card does not fit them.
    """
    described = load_config(card, ImportConfig)
    check_replaceable(out, overwrite=overwrite)
    network = read_checkpoint(checkpoint, described.architecture.model_dump(exclude_none=True))
    wanted = {"classes": network.architecture.classes, "bands": network.architecture.in_channels}
    for what, given in {"classes": len(described.legend), "bands": len(described.bands)}.items():
        if given != wanted[what]:
            raise BundleError(f"{card} names {given} {what}, and the network of {checkpoint} has {wanted[what]}")
    return write_bundle(
        out,
        Card(
            name=out.resolve().name,
            title=described.title,
            description=described.description,
            licence=described.licence,
            created=f"{described.created or datetime.now(UTC).date()}T00:00:00Z",
            architecture=network.architecture,
            bands=described.bands,
            gsd_m=described.gsd_m,
            chip_px=described.chip_px,
            mean=described.mean,
            std=described.std,
            legend=legend_of(described.legend),
            value_range=described.value_range,
            training={"data": described.training_data, "imported_from": checkpoint.name},
            limits=described.limits,
        ),
        network,
    )
