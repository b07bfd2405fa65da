"""Durations and sizes as people read them; files for machines (JSON, CSV) hold plain numbers."""


def format_duration(seconds: float) -> str:
    """Return seconds in the two largest units that fit: '8 s', '3 min 5 s', '1 h 12 min', '2 d 4 h'."""
    for unit, size, below, size_below in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "min", 60),
        ("min", 60, "s", 1),
    ):
        # Rounded first, so that 59.9 of the smaller unit are one of the larger.
        whole, rest = divmod(round(seconds / size_below), size // size_below)
        if whole:
            return f"{whole} {unit} {rest} {below}" if rest else f"{whole} {unit}"
    return f"{seconds:.0f} s"


def format_size(num_bytes: float) -> str:
    """Return bytes in decimal units, three digits or so: '812 B', '3.4 MB', '34 MB', '1.2 GB'."""
    size, units = float(num_bytes), ["B", "kB", "MB", "GB", "TB"]
    while round(size) >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    digits = 1 if units[0] != "B" and size < 9.95 else 0
    return f"{size:,.{digits}f} {units[0]}"
