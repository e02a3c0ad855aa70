"""A decoder of a broadcast's message in plain NumPy, written after docs/format.md: the container, and all stages but the coder.

It shares no line with the project's decoders, and computes in float64. The first line of a docstring names the document's
section. A SPEC comes parsed, as a list of stages.
"""

import hashlib
import math
import statistics
import zlib

import numpy as np
import reference_decoder

VERSION = 2
_NAMES = {np.float32: "float32", np.int32: "int32", np.uint8: "uint8", np.int64: "int64", np.float16: "float16"}


def decode(message, stages, spec, threshold, shape, dtype=np.float32):
    """The message. Returns the one variable that it holds, which is larger than the threshold."""
    fields, values = chain(stages, shape)
    return values(_tensors(message, f"broadcast by {spec}", threshold, [_described(dtype, shape)], fields))


def _tensors(message, label, threshold, variables, fields):
    """The message. Returns the tensors of an encoded variable, by path."""
    fields = {f"encoded_tensors/{path}": field for path, field in fields.items()}
    ordered = sorted(fields)
    lines = [label, f"threshold {threshold}", *variables, ""]
    lines += [_described(*fields[path]) for path in ordered]
    digest = hashlib.sha256("\n".join(lines).encode()).digest()
    assert message[0] == VERSION
    assert message[1:5] == digest[:4]
    assert int.from_bytes(message[5:9], "little") == zlib.crc32(message[9:])
    at, shapes = 9, []
    for path in ordered:
        sizes = []
        for size in fields[path][1]:
            if size is None:
                size, at = _varint(message, at)
            sizes.append(size)
        shapes.append(sizes)
    tensors = {}
    for path, sizes in zip(ordered, shapes):
        kind = np.dtype(fields[path][0]).newbyteorder("<")
        tensors[path[len("encoded_tensors/") :]] = np.frombuffer(message, kind, math.prod(sizes), at).reshape(sizes)
        at += math.prod(sizes) * kind.itemsize
    assert at == len(message)
    return tensors


def _described(dtype, shape):
    return f"{_NAMES[dtype]}[{','.join('?' if size is None else str(size) for size in shape)}]"


def _varint(message, at):
    value = place = 0
    while True:
        value |= (message[at] & 127) << place
        at, place = at + 1, place + 7
        if message[at - 1] < 128:
            return value, at


def chain(stages, shape):
    """Stages. Returns the fields of a chain, path to (dtype, shape), and a function from them to the tensor of `shape`."""
    if not stages:
        return {"": (np.float32, shape)}, lambda t: t[""].astype(float)
    name, arguments = stages[0]
    return _STAGES[name](stages[1:], shape, **arguments)


def _below(key, fields):
    return {f"{key}/{path}" if path else key: field for path, field in fields.items()}


def _child(key, tensors):
    return {path[len(key) + 1 :]: x for path, x in tensors.items() if path == key or path.startswith(f"{key}/")}


def identity(rest, shape):
    """Identity."""
    return {"identity_values": (np.float32, shape)}, lambda t: t["identity_values"].astype(float)


def packed(bits, shape):
    """Packed numbers."""
    n = math.prod(shape)
    low = n if bits > 8 else 0
    rest = bits - 8 if bits > 8 else bits

    def values(t):
        stream = np.unpackbits(t["packed"][low:], bitorder="little")[: n * rest].reshape(n, rest)
        numbers = stream @ (1 << np.arange(rest, dtype=np.int64))
        return ((numbers << 8) + t["packed"][:low] if low else numbers).reshape(shape)

    return {"packed": (np.uint8, [low + -(-n * rest // 8)])}, values


def tensor_encoding(rest, shape, bits):
    """The seed's encoder."""
    n = math.prod(shape)

    def values(t):
        words = t["flattened_values/levels/bitpacked_values"].ravel()
        stream = (words[:, None] >> np.arange(28) & 1).ravel()[: n * bits].reshape(n, bits)
        low, high = t["flattened_values/min_max"].astype(float)[0]
        return (low + stream @ (1 << np.arange(bits)) * (high - low) / (2**bits - 1)).reshape(shape)

    words = (np.int32, [-(-n * bits // 28), 1])
    return {"flattened_values/levels/bitpacked_values": words, "flattened_values/min_max": (np.float32, [1, 2])}, values


def uniform(rest, shape, bits, rounding, block):
    """Uniform quantization."""
    n = math.prod(shape)
    width = block or max(n, 1)
    levels, level_values = chain(rest, shape) if rest else packed(bits, shape)
    fields = {**_below("levels", levels), "min_max": (np.float32, [-(-n // width), 2])}
    if rounding == "dithered":
        fields["seed"] = (np.int32, [2])

    def values(t):
        level = level_values(_child("levels", t)).ravel().astype(float)
        if rounding == "dithered":
            level += 0.5 - dither(n, t["seed"])
        low, high = t["min_max"].astype(float)[np.arange(n) // width].T
        return (low + level * (high - low) / (2**bits - 1)).reshape(shape)

    return fields, values


def step(rest, shape, step, rounding="nearest", price=0, centroids=False, unbiased=False):
    """Step quantization."""
    levels, level_values = chain(rest, shape)
    fields = {**_below("levels", levels), "step": (np.float32, [])}
    if rounding == "dithered":
        fields["seed"] = (np.int32, [2])
    if centroids:
        fields["centroids"] = (np.float32, [2])

    def values(t):
        level = level_values(_child("levels", t)).astype(float)
        if centroids:
            level = level + np.sign(level) * t["centroids"].astype(float)[(np.abs(level) > 1).astype(int)]
        if rounding == "dithered":
            u = dither(level.size, t["seed"]).reshape(shape)
            level = np.where(u > 0.5, -level, level) + 0.5 - u
        return level * float(t["step"])

    return fields, values


def rice(rest, shape, signed=True):
    """Rice codes."""
    n = math.prod(shape)

    def values(t):
        r = int(t["parameter"])
        ends = np.flatnonzero(np.unpackbits(t["quotients"], bitorder="little"))
        assert len(ends) == n
        quotients = np.diff(ends, prepend=-1) - 1
        stream = np.unpackbits(t["remainders"], bitorder="little")[: n * r].reshape(n, r)
        z = (quotients << r) + stream @ (1 << np.arange(r, dtype=np.int64))
        return (np.where(z & 1, -(z + 1) // 2, z // 2) if signed else z).reshape(shape)

    return {"parameter": (np.uint8, []), "quotients": (np.uint8, [None]), "remainders": (np.uint8, [None])}, values


def rotate(rest, shape, block):
    """Rotation."""
    n = math.prod(shape)
    d = min(block, 1 << max(n.bit_length() - 1, 0))
    left = n % d
    rotated, rotated_values = chain(rest, [n])

    def values(t):
        x, seed = rotated_values(_child("rotated", t)), t["seed"]
        head, tail = x[: n - left], x[n - left :]
        if left:
            last = _rotate_back(head[-d:], d, seed, 1)
            head, tail = np.concatenate([head[:-d], tail, last[: d - left]]), last[d - left :]
        return np.concatenate([_rotate_back(head, d, seed, 0), tail]).reshape(shape)

    return {**_below("rotated", rotated), "seed": (np.int32, [2])}, values


def _rotate_back(x, d, seed, salt):
    matrix = np.ones([1, 1])
    while len(matrix) < d:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    for turn in (2 * salt + 1, 2 * salt):
        stream = draws(-(-x.size // 32), [seed[0] ^ turn, seed[1]])
        signs = 2.0 * np.unpackbits(stream.view(np.uint8), bitorder="little")[: x.size] - 1
        x = (x.reshape(-1, d) @ matrix).ravel() / math.sqrt(d) * signs
    return x


def eden(rest, shape, rate, block, unbiased):
    """EDEN: the rotation's section comes first."""
    return rotate([("centroids", {"rate": rate, "block": block, "then": rest})], shape, block)


def _centroids(rest, shape, rate, block, then):
    """EDEN."""
    n = math.prod(shape)
    d = min(block, 1 << max(n.bit_length() - 1, 0))
    high = math.ceil(rate)
    low = high - 1 if rate < high else 0
    fine = min(d, math.ceil(d * (1 - (high - rate)) - 1e-9))
    first = np.arange(n) % d < fine  # Those that have `high` bits.
    codes, code_values = chain(then, [int(first.sum())]) if then else packed(high, [int(first.sum())])
    fields = {**_below("codes", codes), "scales": (np.float32, [-(-n // d)])}
    coarse, coarse_values = packed(low, [int((~first).sum())]) if low else ({}, None)
    fields.update(_below("codes_coarse", coarse))

    def values(t):
        x = np.zeros(n)
        x[first] = _lloyd_max(high)[code_values(_child("codes", t))]
        if low:
            x[~first] = _lloyd_max(low)[coarse_values(_child("codes_coarse", t))]
        return x * t["scales"].astype(float)[np.arange(n) // d]

    return fields, values


def _lloyd_max(bits):
    """Random numbers, and centroids."""
    half = 2**bits // 2
    start = statistics.NormalDist(sigma=math.sqrt(3))
    points = [start.inv_cdf((half + i + 0.5) / (2 * half)) for i in range(half)]
    density = lambda x: math.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)  # noqa: E731
    above = lambda x: math.erfc(x / math.sqrt(2)) / 2  # noqa: E731
    for _ in range(300):
        edges = [0.0, *((a + b) / 2 for a, b in zip(points, points[1:])), math.inf]
        points = [(density(a) - density(b)) / (above(a) - above(b)) for a, b in zip(edges, edges[1:])]
    return np.array([-p for p in reversed(points)] + points)


def topk(rest, shape, fraction):
    """Top-k."""
    n = math.prod(shape)
    k = min(n, max(1, round(fraction * n)))
    kept, kept_values = chain(rest, [k])
    gaps, gap_values = rice([], [k], signed=False)
    fields = {**_below("values", kept), **_below("gaps", {**gaps, "dtype": (np.int32, [0])})}

    def values(t):
        x = np.zeros(n)
        x[np.cumsum(gap_values(_child("gaps", t)) + 1) - 1] = kept_values(_child("values", t))
        return x.reshape(shape)

    return fields, values


def randk(rest, shape, fraction):
    """Random-k."""
    n = math.prod(shape)
    k = min(n, max(1, round(fraction * n)))
    kept, kept_values = chain(rest, [k])

    def values(t):
        ends = np.arange(k + 1) * n // k
        x = np.zeros(n)
        places = ends[:-1] + (draws(k, t["seed"]).view(np.int32).astype(np.int64) + 2**31) % np.diff(ends)
        x[places] = kept_values(_child("values", t))
        return x.reshape(shape)

    return {**_below("values", kept), "seed": (np.int32, [2])}, values


def lowrank(rest, shape, rank, rows):
    """Low rank."""
    size = math.prod(shape)
    m = rows or size // shape[-1]
    n = size // m
    k = min(rank, m, n)
    pays = (m + n) * k < m * n
    factors, factor_values = chain(rest, [m + n, k] if pays else shape)

    def values(t):
        x = factor_values(_child("factors", t))
        return (x[:m] @ x[m:].T).reshape(shape) if pays else x

    return _below("factors", factors), values


def decode_auto(message, shapes, step, rank):
    """Auto. Returns the float32 variables of these shapes that a broadcast by `auto:STEP,RANK` holds, threshold 10,000."""
    views = _views(shapes)
    with_views = sum(map(bool, views))
    fields = {"step": (np.float32, []), "rest": (np.uint8, [None])}
    if with_views:
        columns = sorted({shape[-1] for shape, own in zip(shapes, views) if own})
        fields.update(choice=(np.uint8, [with_views]), factors=(np.uint8, [None]))
        fields.update({f"elements_{c}": (np.uint8, [None]) for c in columns})
    t = _tensors(message, f"broadcast by auto:{step},{rank}", 10_000, [_described(np.float32, shape) for shape in shapes], fields)
    choices = iter(t.get("choice", ()))
    chosen = [next(choices) if own else 1 for own in views]
    lines = sum(sum(own[c - 2]) for own, c in zip(views, chosen) if c >= 2)
    factors = _integers(t["factors"], (lines, rank)) if with_views else None
    elements = {"rest": _integers(t["rest"], (sum(math.prod(shape) for shape, own in zip(shapes, views) if not own),))}
    for name in t:
        if name.startswith("elements_"):
            width = int(name[9:])
            its = [math.prod(s) for s, own, c in zip(shapes, views, chosen) if own and c == 1 and s[-1] == width]
            elements[name] = _integers(t[name], (sum(its) // width, width)).ravel()
    variables = []
    for shape, own, c in zip(shapes, views, chosen):
        if c == 0:
            x = np.zeros(shape)
        elif c == 1:
            name, size = f"elements_{shape[-1]}" if own else "rest", math.prod(shape)
            x, elements[name] = elements[name][:size], elements[name][size:]
        else:
            m, n = own[c - 2]
            (a, b), factors = (factors[:m], factors[m : m + n]), factors[m + n :]
            norms = np.sqrt(np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0))
            x = a[:, norms > 0] / norms[norms > 0] @ b[:, norms > 0].T
        variables.append(x.reshape(shape) * float(t["step"]))
    assert not (any(x.size for x in elements.values()) or (factors is not None and factors.size))
    return variables


def _integers(payload, shape):
    return reference_decoder.decode(payload.tobytes(), shape).astype(float) if payload.size else np.zeros(shape)


def _views(shapes):
    """Auto: views."""
    return [_views_of(shape, {size for other in shapes for size in other}) for shape in shapes]


def _views_of(shape, sizes):
    n = math.prod(shape)
    if n < 4096 or len(shape) < 2:
        return []
    rows, columns = n // shape[-1], shape[-1]
    if rows >= 16 and columns >= 16:
        return [(rows, columns)]
    factors = [d for d in sizes if 16 <= d < rows and rows % d == 0]
    if n < 2**15 or columns >= 16 or max(shape) != rows or not factors:
        return []
    d = min(factors, key=lambda d: (d + n // d, d))
    views = [(d, n // d), (rows // d, d * columns)]
    return [view for view in dict.fromkeys(views) if min(view) >= 16]


_STAGES = {
    "identity": identity,
    "tensor_encoding": tensor_encoding,
    "uniform": uniform,
    "step": step,
    "rate": lambda rest, shape, bits, **others: step(rest, shape, None, **others),
    "rotate": rotate,
    "eden": eden,
    "centroids": _centroids,
    "topk": topk,
    "randk": randk,
    "lowrank": lowrank,
    "rice": rice,
}


def dither(count, seed):
    """Random numbers: dither."""
    return (draws(-(-count // 2), seed).view(np.uint16)[:count] + 0.5) / 2**16


def draws(count, seed):
    """Random numbers: the generator. Returns uint32 [count]."""
    low, high = (int(number) % 2**64 for number in seed)
    counter = [low % 2**32, low >> 32, high % 2**32, high >> 32]
    mixed = _philox(np.array([counter], np.uint32), 0x3EC8F720, 0x02461E29)[0]
    blocks = np.zeros([-(-count // 4), 4], np.uint32)
    number = (int(mixed[2]) << 64) + (int(mixed[3]) << 96)
    for i in range(len(blocks)):
        blocks[i] = [(number + i) >> 32 * word & 0xFFFFFFFF for word in range(4)]
    return _philox(blocks, int(mixed[0]), int(mixed[1])).ravel()[:count].copy()


def _philox(counters, key0, key1):
    """Random numbers: Philox 4x32 with 10 rounds."""
    c = counters.astype(np.uint64).T
    mask = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p, q = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = np.stack(
            [
                (q >> np.uint64(32)) ^ c[1] ^ np.uint64(key0),
                q & mask,
                (p >> np.uint64(32)) ^ c[3] ^ np.uint64(key1),
                p & mask,
            ]
        )
        key0, key1 = (key0 + 0x9E3779B9) % 2**32, (key1 + 0xBB67AE85) % 2**32
    return c.T.astype(np.uint32)
