"""How the report spells numbers for people: units, thin separators, few digits. Imports nothing of sned.

The separator inside a number and before its unit is a narrow no-break space: no line ends between them.
"""

from __future__ import annotations

THIN = "\u202f"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_SI = ("", "k", "M", "G", "T", "P", "E")


def grouped(value: int) -> str:
    """Return every digit, in groups of three: ``134 515 008``."""
    return f"{value:,}".replace(",", THIN).replace("-", "−")


def decimal(value: float, digits: int = 3) -> str:
    """Return a number with so many significant digits, as a power of ten where it is very large or small."""
    if value == 0:
        return "0"
    mantissa, power = f"{value:.{digits - 1}e}".split("e")
    exponent = int(power)
    if not -4 < exponent < 5:
        return f"{mantissa}×10{str(exponent).translate(_SUPERSCRIPT)}".replace("-", "−")
    if exponent >= digits - 1:
        return grouped(round(value))
    return f"{value:.{digits - 1 - exponent}f}".replace("-", "−")


def scaled(value: float, unit: str = "", digits: int = 3) -> str:
    """Return a quantity with a decimal prefix: ``269 MB``, ``23.0 kB``, ``576 B``."""
    step = 0
    while abs(value) >= 999.5 and step < len(_SI) - 1:
        value, step = value / 1000, step + 1
    text = f"{value:.0f}" if step == 0 and float(value).is_integer() else decimal(value, digits)
    return f"{text}{THIN}{_SI[step]}{unit}".rstrip(THIN)


def count(value: int, digits: int = 4) -> str:
    """Return a number of parameters or tokens: ``134.5 M``, ``70.55 B``."""
    return scaled(value, digits=digits).replace(f"{THIN}G", f"{THIN}B")


def percent(share: float, places: int = 1) -> str:
    """Return a share, 0 to 1, in per cent."""
    return f"{100 * share:.{places}f}%".replace("-", "−")


def signed(value: float, digits: int = 3) -> str:
    """Return a difference with its sign: ``+0.0123``."""
    return ("+" if value > 0 else "") + decimal(value, digits)


def change(before: float, after: float) -> str:
    """Return what was lost or gained, in per cent of what was: ``−19.6%``."""
    if before == after:
        return "same"
    if before == 0:
        return "new"
    share = after / before - 1
    return ("+" if share > 0 else "") + percent(share)


def times(ratio: float) -> str:
    """Return a factor: ``×1.22``."""
    return f"×{decimal(ratio)}"


def duration(seconds: float) -> str:
    """Return a length of time: ``50 ms``, ``2.3 s``, ``42 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds < 0.1:
        return f"{1000 * seconds:.0f}{THIN}ms"
    if seconds < 59.5:
        return f"{seconds:.{0 if seconds >= 9.95 else 1}f}{THIN}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{THIN}min {rest:02d}{THIN}s"
    return f"{minutes // 60}{THIN}h {minutes % 60:02d}{THIN}min"
