"""How numbers are written for people, everywhere."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Value = TypeVar("Value")
_PLAIN = 1e6  # longer numbers are written with an exponent


def format_percent(fraction: float) -> str:
    """Format a fraction so that small ones stay readable.

    >>> format_percent(0.0123), format_percent(0.00001), format_percent(3.5), format_percent(0.0)
    ('1.2%', '<0.1%', '3.5 times', '0%')
    """
    if fraction >= 2:
        return f"{format_factor(fraction)} times"
    if 0 < fraction < 0.001:
        return "<0.1%"
    percent = 100 * fraction
    return f"{percent:.0f}%" if percent >= 10 or percent == 0 else f"{percent:.1f}%"


def format_factor(factor: float) -> str:
    """Format a ratio of two numbers.

    >>> format_factor(0.456), format_factor(2.345), format_factor(127.3), format_factor(20_500), format_factor(3e9)
    ('0.46', '2.3', '127', '20,500', '3e+09')
    """
    if factor >= _PLAIN:
        return f"{factor:.0e}"
    return f"{factor:.2f}" if factor < 1 else f"{factor:.1f}" if factor < 9.95 else f"{factor:,.0f}"


def format_agreement(fraction: float) -> str:
    """Format a share of positions, rounded down, so that 100% means all of them.

    >>> format_agreement(1.0), format_agreement(0.99996), format_agreement(0.5)
    ('100%', '99.9%', '50%')
    """
    return f"{math.floor(1000 * fraction) / 10:g}%"


def format_known(format_value: Callable[[Value], str], value: Value | None) -> str | None:
    """Format a value, if there is one.

    >>> format_known(str, 3), format_known(str, None)
    ('3', None)
    """
    return None if value is None else format_value(value)


def capitalize(text: str) -> str:
    """Return text that starts with a capital letter, the others as they are."""
    return text[:1].upper() + text[1:]


def format_change(change: float) -> str:
    """Format a relative change so that small ones keep their sign and two digits.

    >>> format_change(0.0123), format_change(-0.0004), format_change(0.0), format_change(2e-6)
    ('+1.2%', '-0.040%', '0%', '+0.0002%')
    """
    percent = 100 * change
    if percent == 0:
        return "0%"
    digits = min(max(1 - math.floor(math.log10(abs(percent))), 0), 4)
    return f"{percent:+.{digits}f}%"


def format_error(error: float) -> str:
    """Format an error or a divergence.

    >>> format_error(0.0), format_error(1.234e-7)
    ('0', '1.2e-07')
    """
    return f"{error:.1e}" if error else "0"


def format_ms(milliseconds: float) -> str:
    """Format a latency with its unit.

    >>> format_ms(0.1234), format_ms(12.34), format_ms(4321), format_ms(0.0)
    ('0.123 ms', '12.3 ms', '4.32 s', '0 ms')
    """
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.3g} s"
    return f"{milliseconds:.3g} ms"


def format_count(count: float) -> str:
    """Format a large count with three digits that mean something.

    >>> format_count(1234567.0), format_count(987.6), format_count(0.25)
    ('1,230,000', '988', '0.25')
    """
    if count < 100:
        return f"{count:.3g}"
    digits = 3 - len(str(int(count)))
    return f"{round(count, digits):,.0f}"


def format_flops(count: float) -> str:
    """Format floating-point operations in decimal units.

    >>> format_flops(950), format_flops(3_248_750_592), format_flops(541e6), format_flops(2.2e12)
    ('950 FLOP', '3.2 GFLOP', '541 MFLOP', '2.2 TFLOP')
    """
    unit = ""
    for larger in "kMGT":
        if count < 1000:
            break
        count, unit = count / 1000, larger
    return f"{count:.{0 if not unit or count >= 9.95 else 1}f} {unit}FLOP"


def format_length(count: int, unit: str) -> str:
    """Format a length.

    >>> format_length(1, "tokens"), format_length(1024, "samples")
    ('1 token', '1,024 samples')
    """
    return f"1 {unit.removesuffix('s')}" if count == 1 else f"{count:,} {unit}"


def format_bytes(count: int) -> str:
    """Format a size in binary units.

    >>> format_bytes(512), format_bytes(500 << 10), format_bytes(3 << 20), format_bytes(3 << 29)
    ('512 B', '500 KiB', '3.0 MiB', '1.5 GiB')
    """
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if size < 1000:  # 1000 to 1023 would need a fourth digit
            break
        size, unit = size / 1024, larger
    return f"{size:.{0 if unit == 'B' or size >= 9.95 else 1}f} {unit}"
