"""A decoder of the entropy coder's bytes in plain NumPy, written from docs/format.md and nothing else.

It is slow and shares no line with the project's decoder: where the two agree, the document says what the bytes mean. The first
line of a docstring names the document's section.
"""

import itertools

import numpy as np

VERSION = 1
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
    must(coder <= 3, "a coder from 0 to 3")
    if coder == 1:
        must(len(body) == n * dtype.itemsize, "the elements as they are")
        return np.frombuffer(body, dtype.newbyteorder("<")).astype(dtype).reshape(shape)
    if coder == 2:
        return np.full(shape, np.nan if dtype.kind == "f" else 0, dtype)
    numbers = decode_elements(body, n, columns) if coder == 0 else decode_tuples(body, n)
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


def decode_symbols(reader, total, group, most_lanes, lanes, groups, tables, table_of):
    """The symbol coder: returns symbols [steps, group, lanes] and the bypass stream's bytes.

    `tables` are int64 [tables, symbols], and `table_of` tells from the number of steps which codes each symbol.
    """
    must(1 <= lanes <= min(groups, most_lanes), "an allowed number of lanes")
    steps = -(-groups // lanes)
    must(steps <= max(1024, -(-groups // most_lanes)), "an allowed number of steps")
    symbol_of = np.stack([np.repeat(np.arange(row.size), row) for row in tables])  # [tables, slots]
    starts = np.cumsum(tables, axis=1) - tables
    which = table_of(steps)
    packed = np.frombuffer(reader.take(6 * lanes), np.uint8).reshape(lanes, 6).astype(np.int64)
    x = 2**48 + np.sum(packed << (8 * np.arange(6)), axis=1)
    stream_data = reader.rest()
    stream = Bits(stream_data)
    symbols = np.zeros([steps, group, lanes], np.int64)
    for step, k in itertools.product(range(steps), range(group)):
        slot = x % total
        table = which[step, k]
        symbol = symbols[step, k] = symbol_of[table, slot]
        x = tables[table, symbol] * (x // total) + slot - starts[table, symbol]
        if k == group - 1:
            w = 49 - (np.frexp(x.astype(np.float64))[1]).astype(np.int64)  # The exponent is the bit length; x < 2^53.
            x = (x << w) + stream.fields(w)
    initial = ((x - 2**48)[:, np.newaxis] >> (8 * np.arange(6)) & 255).astype(np.uint8).tobytes()
    return symbols, initial + stream_data[stream.bytes_used() :]


def read_numbers(classes, bypass, with_sign):
    """Numbers in classes: returns the numbers, int64 [n], signed ones if they have their signs here."""
    octave, m = classes // 8, classes % 8
    has_sign = (classes > 0) & with_sign
    fields = bypass.fields(octave + has_sign)
    distance, negative = fields & ((1 << octave) - 1), fields >> octave
    v = ((8 + m) << octave) - 8 + distance
    return np.where(negative > 0, -v, v)


def unfold(v):
    return np.where(v % 2 == 0, v // 2, -((v + 1) // 2))


def decode_elements(body, n, columns):
    """Coder 0: elements."""
    reader = Reader(body)
    header = Bits(reader.take(10))
    offset, lanes, signs_bypass, levels, line_bytes = (header.field(width) for width in (32, 16, 1, 5, 24))
    offset -= 2**31
    must(levels == (16 if line_bytes else 1), "16 levels with lines, else one")
    must(not line_bytes or 1 < columns < n, "lines only of a matrix")
    counts = np.frombuffer(reader.take(4 * levels), "<i4").astype(np.int64)
    events = int(counts.sum())
    must((counts >= 0).all() and (events == n or events <= n // 2), "counts of events that fit")
    lines = reader.take(line_bytes)
    tables = read_tables(reader, 2 * levels, 248)
    dense = 2 * events > n
    groups = -(-n // 4) if dense else max(-(-events // 2), 1)
    signed_count, plain_count = (min(groups, n), n - min(groups, n)) if dense else (events, events)
    signed_rows = 1 if dense else 2
    level = np.zeros(0, np.int64) if dense else np.repeat(np.arange(levels), counts)

    def table_of(steps):
        length = steps * lanes
        table = np.zeros(4 * length, np.int64)
        table[signed_rows * length :] = 1
        if not dense:
            table[:events] = 2 * level
            table[signed_rows * length :][:events] = 2 * level + 1
        return table.reshape(4, steps, lanes).transpose(1, 0, 2)

    symbols, bypass = decode_symbols(reader, 2**12, 4, 8192, lanes, groups, tables, table_of)
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
    if line_bytes:
        places = order_by_lines(lines, n // columns, columns)[places]
    result = np.full(n, offset, np.int64)
    result[places] += signed
    return int32(result)


def order_by_lines(data, rows, columns):
    """The order by lines: returns the element that stands at each place, int64 [n]."""
    reader = Reader(data)
    by_rank = list(reader.take(16))
    must(sorted(by_rank) == list(range(16)), "16 different classes")
    must(len(reader.rest()) <= 2 * (rows + columns), "at most 2 bytes a line")
    ones = np.flatnonzero(np.unpackbits(np.frombuffer(reader.rest(), np.uint8), bitorder="little"))
    must(ones.size == rows + columns, "a rank for each line")
    ranks = np.diff(ones, prepend=-1) - 1
    must(ranks.max() < 16, "ranks below 16")
    classes = np.array(by_rank)[ranks]
    row_lists, column_lists = ([np.flatnonzero(part == c) for c in range(16)] for part in (classes[:rows], classes[rows:]))

    def key(block):
        a, b = block
        return (16 if 0 in block else (a + b) // 2), a, b

    blocks = sorted(itertools.product(range(16), range(16)), key=key)
    return np.concatenate([(row_lists[a][:, np.newaxis] * columns + column_lists[b]).ravel() for a, b in blocks])


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
    symbols, bypass = decode_symbols(
        reader, 2**16, 3, 2048, lanes, -(-count // 3), slots[np.newaxis], lambda steps: np.zeros([steps, 3, 1], np.int64)
    )
    symbols = symbols.ravel()[:count]
    escaped = symbols == digits**length
    tail = n - count * length
    escaped_size = tail + int(escaped.sum()) * length
    spelled = decode_elements(bypass, escaped_size, escaped_size)
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
