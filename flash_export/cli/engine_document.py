"""What ``flash-export trt`` shows: an engine that was built, and which engines of a bundle may be loaded here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flash_export.formatting import format_bytes
from flash_export.report.document import Document, Pairs, Section, Styled, number, tabulate, text
from flash_export.runtime.profile_choice import format_profile
from flash_export.strict_json import format_json

if TYPE_CHECKING:
    from flash_export.bundle.bundle import Bundle
    from flash_export.exporters.engine import EngineBuild
    from flash_export.exporters.profile_cuts import ProfileCuts
    from flash_export.exporters.profile_use import ProfileUse
    from flash_export.report.document import Columns, Style
    from flash_export.runtime.engine_check import EngineStatus

NO_PROFILE = "none: every size is fixed"


@dataclass(frozen=True)
class Engines:
    """Engines of a bundle, and whether they may be loaded here; true unless one must not.

    Attributes:
        engines: That which was built, or all that were looked at.
        is_from_cache: Whether what was built had been built before.
        use: How its profiles were cut, where it was said how often each length is asked for.
    """

    engines: tuple[EngineStatus, ...]
    is_from_cache: bool = False
    use: ProfileUse | None = None

    def __bool__(self) -> bool:
        """Tell whether none must not be loaded here."""
        return all(self.engines)

    def to_json(self) -> str:
        """Return strict JSON."""
        return format_json(self)


def describe_engine(bundle: Bundle, build: EngineBuild) -> Document:
    """Return the report of a build."""
    from flash_export.bundle.bundle import ENGINE_FOLDER

    engine, count = build.engine, len(build.engine.profiles)
    dtypes = ", ".join(f"{number} {dtype}" for dtype, number in engine.layer_dtypes.items())
    depth = bundle.manifest.model.num_blocks if bundle.manifest.model else None
    blocks = (
        f", {engine.num_layers / depth:.0f} per block with what is around the {depth}" if depth and depth > 1 else ""
    )
    per_profile = count > 1
    size = f", {format_bytes(engine.size_bytes // count)} per profile" if per_profile else ""
    seconds = f", {engine.build_seconds / count:.1f} s per profile" if per_profile else ""
    pairs = {
        "flavour": f"{engine.flavour} {engine.version}",
        "targets": ", ".join(engine.targets),
        "profiles": "; ".join(format_profile(engine, one) or NO_PROFILE for one in engine.profiles),
        "layers": f"{engine.num_layers}{blocks} ({dtypes})",
        "size": f"{format_bytes(engine.size_bytes)}{size}",
        "built in": f"{engine.build_seconds:.1f} s{seconds}"
        + (", before: it is taken from the cache" if build.is_from_cache else ""),
    }
    if use := build.use:
        pairs["cut for"] = f"lengths as in {use.source}, {use.mean_length:,.0f} {use.unit} in the mean"
        pairs["chosen"] = f"{use.chosen} profile{'s' if use.chosen > 1 else ''}: {use.reason}"
    path = bundle.path / ENGINE_FOLDER / f"{engine.name}.engine"
    sections = [Section("", Pairs(tuple(pairs.items())))]
    if build.use is not None:
        sections.append(_describe_use(build.use))
    return Document(f"engine {path}", "flash-export trt", sections=tuple(sections))


def _describe_status(one: EngineStatus) -> Styled:
    if one.fits:
        return Styled("fits", "passed")
    return Styled("not known", "skipped") if one else Styled("does not fit", "failed")


def _describe_use(use: ProfileUse) -> Section:
    """Return what each number of profiles would cost."""
    one = use.candidates[0].padding

    def describe_saving(cuts: ProfileCuts) -> str:
        return f"{(one - cuts.padding) / (use.mean_length + one):.0%}"

    columns: Columns[ProfileCuts] = (
        (number("profiles"), lambda cuts: str(len(cuts.ends))),
        (text("they end at", is_prose=True), lambda cuts: ", ".join(f"{end:,}" for end in cuts.ends)),
        (number(f"padding ({use.unit})"), lambda cuts: f"{cuts.padding:,.0f}"),
        (number("saved of the work"), describe_saving),
        (number("changes"), lambda cuts: f"{cuts.changes:.0%}"),
    )
    table = tabulate(use.candidates, columns, is_marked=lambda cuts: len(cuts.ends) == use.chosen)
    intro = (
        "Padding is what a mean request gets that is padded to the end of its profile; "
        "saved is the share of the work with one profile; changes are requests that need another profile than the one "
        "before."
    )
    return Section("Profiles", table, intro)


def describe_check(bundle: Bundle, engines: Engines) -> Document:
    """Return which engines may be loaded here."""
    columns: Columns[EngineStatus] = (
        (text("engine"), lambda one: one.engine.name),
        (text("graph"), lambda one: one.engine.graph),
        (text("built by"), lambda one: f"{one.engine.flavour} {one.engine.version}"),
        (text("for"), lambda one: ", ".join(one.engine.targets)),
        (text("here"), _describe_status),
    )

    def describe_remark(one: EngineStatus) -> str:
        unknown = f"Not told here: {'; '.join(one.unknown)}." if one.unknown else ""
        if one:
            return unknown
        return f"Must not be loaded here: {'; '.join(one.differences)}. {unknown} Build it again: {one.rebuild}"

    wrong, number_all = sum(not one for one in engines.engines), len(engines.engines)
    told = sum(one.fits for one in engines.engines)
    headline = f"{told} of {number_all} can be loaded here, {wrong} must not, {number_all - told - wrong} not known"
    status: Style = "failed" if wrong else "passed" if told == number_all else "skipped"
    table = tabulate(engines.engines, columns, describe_remark)
    return Document(
        f"Engines of {bundle.path}",
        "flash-export trt --check",
        headline,
        status,
        sections=(Section("", table),),
    )
