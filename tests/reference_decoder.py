"""A decoder of the entropy coder's bytes in plain NumPy, written from docs/format.md and nothing else.

It is slow and shares no line with the project's decoder: where the two agree, the document says what the bytes mean. The first
line of a docstring names the document's section.
"""

import itertools

import numpy as np

VERSION = 2
GROUP_BITS = 48  # M^g = 2^48.
SHAPES = [(10, 1), (8, 1), (6, 2), (5, 4), (4, 7), (3, 19), (2, 126)]  # Of tuples: length and reach.


class PayloadError(ValueError):
    """A payload that breaks a "must" of the document, or ends too early."""


def must(condition, what):
    if not condition:
        raise PayloadError(what)


class Bits:
    """Conventions: a bit stream, read field by field."""

    def __init__(self, data):
        self._bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
        self.position = 0

    def field(self, width):
        end = self.position + width
        must(end <= self._bits.size, "a stream that is long enough")
        bits, self.position = self._bits[self.position : end], end
        return int.from_bytes(np.packbits(bits, bitorder="little").tobytes(), "little")

    def fields(self, widths):
        """Returns the fields of these widths, int64 [n], at most 62 bits each, as `field` would one by one."""
        widths = np.asarray(widths, np.int64)
        starts = self.position + np.cumsum(widths) - widths
        end = self.position + int(widths.sum())
        must(end <= self._bits.size, "a stream that is long enough")
        self.position = end
        numbers = np.zeros(widths.size, np.int64)
        for i in range(int(widths.max(initial=0))):
            has = widths > i
            numbers[has] |= self._bits[starts[has] + i].astype(np.int64) << i
        return numbers

    def bytes_used(self):
        return -(-self.position // 8)


class Reader:
    """The parts of a body, from its first byte on."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        must(self.at + count <= len(self.data), "a body that is long enough")
        part, self.at = self.data[self.at : self.at + count], self.at + count
        return part

    def rest(self):
        return self.data[self.at :]


def decode(payload, shape, dtype=np.float32):
    """The payload: returns the tensor of this shape and dtype."""
    dtype, n = np.dtype(dtype), int(np.prod(shape, dtype=np.int64))
    columns = shape[-1] if len(shape) > 1 else n
    must(1 <= len(payload) <= 16 * n + 2**18, "a payload of allowed length")
    coder, version, body = payload[0] & 15, payload[0] >> 4, payload[1:]
    must(version == VERSION, "this version")
    must(coder <= 4, "a coder from 0 to 4")
    if coder == 1:
        must(len(body) == n * dtype.itemsize, "the elements as they are")
        return np.frombuffer(body, dtype.newbyteorder("<")).astype(dtype).reshape(shape)
    if coder == 2:
        return np.full(shape, np.nan if dtype.kind == "f" else 0, dtype)
    if coder == 4:
        return decode_rows(body, n, columns).astype(dtype).reshape(shape)
    numbers = decode_elements(body, n) if coder == 0 else decode_tuples(body, n)
    return numbers.astype(dtype).reshape(shape)


def int32(numbers):
    """Returns numbers modulo 2^32."""
    return np.asarray(numbers, np.int64).astype(np.int32)  # NumPy keeps the low bits.


def read_tables(reader, count, symbols):
    """Tables of frequencies: returns int64 [count, symbols]."""
    sizes = list(reader.take(count))
    must(max(sizes) <= symbols, "tables of at most this many symbols")
    used = sum(sizes)
    lengths = Bits(reader.take(-(-4 * used // 8))).fields([4] * used)
    rest_widths = np.maximum(lengths - 1, 0)
    rests = Bits(reader.take(-(-int(rest_widths.sum()) // 8))).fields(rest_widths)
    frequencies = np.where(lengths > 0, (1 << rest_widths) + rests, 0)
    tables, start = np.zeros([count, symbols], np.int64), 0
    for table, size in zip(tables, sizes):
        table[:size] = frequencies[start : start + size]
        start += size
    must((tables.sum(axis=1) == 4096).all(), "tables that sum to 4096")
    return tables


def decode_symbols(reader, total, group, lanes, steps, tables, table_of, seen=lambda step, k, symbols: None):
    """The symbol coder: returns symbols [steps, group, lanes] and the bypass stream's bytes.

    `tables` are int64 [tables, symbols]; `table_of` tells from the step and the place in the group which table codes each
    lane's symbol, and `seen` is told the symbols.
    """
    symbol_of = np.stack([np.repeat(np.arange(row.size), row) for row in tables])  # [tables, slots]
    starts = np.cumsum(tables, axis=1) - tables
    packed = np.frombuffer(reader.take(6 * lanes), np.uint8).reshape(lanes, 6).astype(np.int64)
    x = 2**48 + np.sum(packed << (8 * np.arange(6)), axis=1)
    stream_data = reader.rest()
    stream = Bits(stream_data)
    symbols = np.zeros([steps, group, lanes], np.int64)
    for step, k in itertools.product(range(steps), range(group)):
        slot = x % total
        table = table_of(step, k)
        symbol = symbols[step, k] = symbol_of[table, slot]
        seen(step, k, symbol)
        x = tables[table, symbol] * (x // total) + slot - starts[table, symbol]
        if k == group - 1:
            w = 49 - (np.frexp(x.astype(np.float64))[1]).astype(np.int64)  # The exponent is the bit length; x < 2^53.
            x = (x << w) + stream.fields(w)
    initial = ((x - 2**48)[:, np.newaxis] >> (8 * np.arange(6)) & 255).astype(np.uint8).tobytes()
    return symbols, initial + stream_data[stream.bytes_used() :]


def steps_of(lanes, groups, most_lanes):
    """The symbol coder: returns how many groups a lane has."""
    must(1 <= lanes <= min(groups, most_lanes), "an allowed number of lanes")
    steps = -(-groups // lanes)
    must(steps <= max(1024, -(-groups // most_lanes)), "an allowed number of steps")
    return steps


def first_number(classes):
    """Numbers in classes: returns the first number of each class."""
    return ((8 + classes % 8) << (classes // 8)) - 8


def read_numbers(classes, bypass, with_sign):
    """Numbers in classes: returns the numbers, int64 [n], signed ones if they have their signs here."""
    octave = classes // 8
    has_sign = (classes > 0) & with_sign
    fields = bypass.fields(octave + has_sign)
    distance, negative = fields & ((1 << octave) - 1), fields >> octave
    v = first_number(classes) + distance
    return np.where(negative > 0, -v, v)


def unfold(v):
    return np.where(v % 2 == 0, v // 2, -((v + 1) // 2))


def decode_elements(body, n):
    """Coder 0: elements."""
    reader = Reader(body)
    header = Bits(reader.take(10))
    offset, lanes, signs_bypass, events = (header.field(width) for width in (32, 16, 1, 31))
    offset -= 2**31
    must(events == n or events <= n // 2, "a number of events that fits")
    tables = read_tables(reader, 2, 248)
    dense = 2 * events > n
    groups = -(-n // 4) if dense else max(-(-events // 2), 1)
    signed_count, plain_count = (min(groups, n), n - min(groups, n)) if dense else (events, events)
    signed_rows = 1 if dense else 2
    steps = steps_of(lanes, groups, 8192)
    symbols, bypass = decode_symbols(reader, 2**12, 4, lanes, steps, tables, lambda step, k: int(k >= signed_rows))
    classes = symbols.transpose(1, 0, 2).ravel()
    bypass = Bits(bypass)
    signed = read_numbers(classes[:signed_count], bypass, signs_bypass == 1)
    plain_start = signed_rows * symbols[:, 0].size
    plain = read_numbers(classes[plain_start : plain_start + plain_count], bypass, False)
    if not signs_bypass:
        signed = unfold(signed)
    if dense:
        return int32(np.concatenate([signed, unfold(plain)]) + offset)
    places = np.cumsum(plain + 1) - 1
    must(not events or places[-1] < n, "places within the tensor")
    result = np.full(n, offset, np.int64)
    result[places] += signed
    return int32(result)


def decode_rows(body, n, columns):
    """Coder 4: rows."""
    must(4 <= columns <= 8192 and columns < n <= 2**30, "a matrix of 4 to 8192 columns")
    reader, rows = Reader(body), n // columns
    header = Bits(reader.take(9))
    offset, lanes, sections, first_level, levels = (header.field(width) for width in (32, 16, 8, 7, 7))
    offset, levels = offset - 2**31, levels + 1
    must(sections >= 1, "a section")
    must(levels <= 24, "at most 24 levels")
    packed = np.frombuffer(reader.take(sections * columns), np.uint8).astype(np.int64).reshape(sections, columns)
    labels, modes = packed % 64, packed // 64
    must((labels <= 44).all() and (modes <= 2).all() and labels.any(), "labels and modes that there are")
    own = np.flatnonzero(labels.any(axis=0))
    width = -(-own.size // 4) * 4
    filled = [[0, 0], [0, width - own.size]]
    labels, modes = np.pad(labels[:, own], filled), np.pad(modes[:, own], filled, mode="edge")
    scales = np.where(labels > 0, (2 + labels % 2) << (labels // 2), 0)
    ratios = scales / (2048 + np.cumsum(scales, axis=1) - scales)
    first_signed = levels * (modes == 0).any()
    tables = read_tables(reader, int(first_signed + levels * (modes > 0).any()), 255)
    must(1 <= lanes <= min(rows, 8192), "an allowed number of lanes")
    depth = -(-rows // lanes)
    must(depth <= max(4096 // width, 1, -(-rows // 8192)), "lanes of an allowed depth")
    section = np.arange(lanes) * sections // lanes
    total = np.full(lanes, 2048)

    def table_of(step, k):
        j = (4 * step + k) % width
        if j == 0:
            total[:] = 2048
        mantissa, exponent = np.frexp(ratios[section, j] * total)  # From 1/2 to 1.
        level = np.where(exponent > 0, 2 * (exponent - 1) + (mantissa >= 0.75), 0)
        return np.clip(level - first_level, 0, levels - 1) + np.where(modes[section, j] > 0, first_signed, 0)

    def classes_of(symbols, modes):
        return np.where(modes > 0, (symbols + 1) // 2, symbols)

    def seen(step, k, symbols):
        classes = classes_of(symbols, modes[section, (4 * step + k) % width])
        total[:] += np.minimum(1024 * first_number(classes), 2**28)

    symbols, bypass = decode_symbols(reader, 2**12, 4, lanes, depth * width // 4, tables, table_of, seen)
    symbols = symbols.reshape(-1, lanes).T.reshape(lanes, depth, width)
    mode = np.broadcast_to(modes[section][:, np.newaxis], symbols.shape)
    numbers = read_numbers(classes_of(symbols, mode).ravel(), Bits(bypass), mode.ravel() == 0).reshape(symbols.shape)
    numbers = np.where((mode > 0) & (symbols % 2 == (mode == 1)), -numbers, numbers)
    result = np.zeros([rows, columns], np.int64)
    result[:, own] = numbers.reshape(-1, width)[:rows, : own.size]
    return int32(result.ravel() + offset)


def decode_tuples(body, n):
    """Coder 3: tuples."""
    reader = Reader(body)
    header = Bits(reader.take(7))
    offset, lanes, shape = (header.field(width) for width in (32, 16, 8))
    offset -= 2**31
    must(shape < len(SHAPES), "a shape from 0 to 6")
    length, reach = SHAPES[shape]
    digits = 2 * reach + 1
    table = read_tables(reader, 1, 2 * reach + 2)[0]
    slots = codebook(table[1:], length)
    count = (n - n // 48) // length
    steps = steps_of(lanes, -(-count // 3), 2048)
    symbols, bypass = decode_symbols(reader, 2**16, 3, lanes, steps, slots[np.newaxis], lambda step, k: 0)
    symbols = symbols.ravel()[:count]
    escaped = symbols == digits**length
    tail = n - count * length
    escaped_size = tail + int(escaped.sum()) * length
    spelled = decode_elements(bypass, escaped_size)
    powers = digits ** np.arange(length - 1, -1, -1)
    result = symbols[:, np.newaxis] // powers % digits + offset - reach
    result[escaped] = spelled[tail:].reshape(-1, length)
    return int32(np.concatenate([result.ravel(), spelled[:tail]]))


def codebook(q, length):
    """Codebook: returns the slots of each tuple, and then of the escape symbol, int64."""
    weight = q << 24
    for _ in range(length - 1):
        weight = (weight[:, np.newaxis] * q >> 12).ravel()
    weight[weight < 2**19] = 0
    running = np.cumsum(weight)
    total = int(running[-1])
    escape = max(2**16 - total // 2**20, 1)
    ends = running * (2**16 - escape) // max(total, 1)
    return np.concatenate([np.diff(ends, prepend=0), [escape]])
