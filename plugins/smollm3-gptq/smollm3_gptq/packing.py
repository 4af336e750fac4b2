"""Pack and unpack low-bit codes: 32-bit words in GPTQ checkpoints, bytes in memory.

In a checkpoint, the codes of a column form one little-endian bit stream across its words, so a 3-bit code may span two
words. In memory, each code takes 2, 4 or 8 bits of a byte, along a row of the weight.
"""

from __future__ import annotations

import torch
from torch import Tensor


def unpack_words(words: Tensor, bits: int) -> Tensor:
    """Codes (n · 32 / bits, m) as uint8 from int32 words (n, m), whose bit streams run along the first axis."""
    mask = (1 << bits) - 1
    if 32 % bits == 0:
        shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=words.device)
        codes = torch.bitwise_right_shift(words[:, None, :], shifts[None, :, None]) & mask
        return codes.to(torch.uint8).flatten(0, 1)
    wide = words.to(torch.int64) & 0xFFFFFFFF
    following = torch.cat([wide[1:], torch.zeros_like(wide[:1])])
    pairs = wide | (following << 32)  # the sign bit may be set; bits that the shift adds are masked out
    position = torch.arange(0, 32 * len(words) - bits + 1, bits, device=words.device)
    codes = (pairs[position // 32] >> (position % 32)[:, None]) & mask
    return codes.to(torch.uint8)


def pack_bytes(codes: Tensor, bits: int) -> Tensor:
    """Pack codes (rows, n) into bytes (rows, ⌈n · bits / 8⌉), low bits first; `bits` is 2, 4 or 8."""
    each = 8 // bits
    if codes.shape[1] % each:
        codes = torch.nn.functional.pad(codes, (0, each - codes.shape[1] % each))
    pieces = codes.reshape(codes.shape[0], -1, each)
    packed = pieces[..., 0].clone()
    for i in range(1, each):
        packed |= pieces[..., i] << (bits * i)
    return packed


def unpack_bytes(packed: Tensor, bits: int, columns: int) -> Tensor:
    """Unpack codes (rows, columns) from the bytes of `pack_bytes`."""
    if bits == 8:
        return packed
    mask = (1 << bits) - 1
    pieces = [(packed >> shift) & mask for shift in range(0, 8, bits)]
    return torch.stack(pieces, dim=-1).flatten(1)[:, :columns]


def pack_words(codes: Tensor, bits: int) -> Tensor:
    """Pack codes (n, m) along the first axis into int32 words (⌈n · bits / 32⌉, m): the inverse of `unpack_words`."""
    count, columns = codes.shape
    whole = torch.zeros(-(-count // 32) * 32, columns, dtype=torch.int64, device=codes.device)
    whole[:count] = codes
    pieces = whole.view(-1, 32, columns)  # 32 codes fill `bits` words
    words = torch.zeros(len(pieces), bits, columns, dtype=torch.int64, device=codes.device)
    for i in range(32):
        word, shift = divmod(i * bits, 32)
        words[:, word] |= pieces[:, i] << shift
        if shift + bits > 32:
            words[:, word + 1] |= pieces[:, i] >> (32 - shift)
    return words.to(torch.int32).flatten(0, 1)[: -(-count * bits // 32)].contiguous()
