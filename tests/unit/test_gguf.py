"""A GGUF file becomes a folder that a bare transformers loads with the same logits, or a clear refusal."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from sned.checkpoint.gguf import convert
from sned.errors import CheckpointError, MissingExtraError, SnedError, UnsupportedModelError

gguf = pytest.importorskip("gguf")
pytest.importorskip("accelerate")

TOKENS = ["<s>", "</s>", *"abcdefghijklmnopqrstuvwxyzĠ", "th", "the", *(f"x{i}" for i in range(33))]
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def tiny_llama(rope: dict[str, Any] | None = None) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_theta": 500000.0, "rope_type": "default"} | (rope or {}),
        tie_word_embeddings=False,
        dtype=torch.float32,
    )
    return LlamaForCausalLM(config).eval()


def tensors_of(model: LlamaForCausalLM) -> dict[str, np.ndarray]:
    """Under the names of llama.cpp, with the rows of q and k in its order."""
    found = {}
    for name, tensor in model.state_dict().items():
        value = tensor.numpy()
        if "q_proj" in name or "k_proj" in name:
            heads = model.config.num_attention_heads if "q_proj" in name else model.config.num_key_value_heads
            value = value.reshape(heads, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        outer = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm"}
        short = outer.get(name, "output")
        if name.startswith("model.layers."):
            _, _, layer, part = name.removesuffix(".weight").split(".", 3)
            short = f"blk.{layer}.{NAMES[part]}"
        found[f"{short}.weight"] = np.ascontiguousarray(value)
    return found


def write(
    path: Path,
    tensors: dict[str, np.ndarray],
    arch: str = "llama",
    *,
    tokenizer: bool = True,
    quantised: Any = None,
    scaling: Any = None,
    parts: int = 1,
) -> Path:
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name("A tiny title")
    writer.add_context_length(256)
    writer.add_block_count(2)
    writer.add_embedding_length(16)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500000.0)
    writer.add_rope_dimension_count(8)
    if tokenizer:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(TOKENS)
        writer.add_token_types([3, 3] + [1] * (len(TOKENS) - 2))
        writer.add_token_merges(["t h", "th e"])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
    if scaling:
        writer.add_rope_scaling_type(scaling)
    if parts > 1:
        writer.add_uint16("split.count", parts)
    for name, value in tensors.items():
        if quantised and name.endswith("ffn_down.weight"):  # 32 wide, as a block must be
            writer.add_tensor(name, gguf.quantize(value, quantised), raw_dtype=quantised)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(60)[None]).logits


def refusal(path: Path, into: Path, kind: type[SnedError]) -> str:
    with pytest.raises(kind) as caught:
        convert(path, into)
    assert str(path) in str(caught.value)
    assert caught.value.hint
    return str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_file_of_floats_converts_without_loss(tmp_path: Path, dtype: torch.dtype) -> None:
    model = tiny_llama().to(dtype)
    tensors = tensors_of(model)
    norms = {name: value.astype(np.float32) for name, value in tensors.items() if "norm" in name}
    path, out = write(tmp_path / "m.gguf", tensors | norms), tmp_path / "out"
    convert(path, out)
    loaded = AutoModelForCausalLM.from_pretrained(out).eval()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
        assert loaded.state_dict()[name].dtype == dtype
    if dtype == torch.float32:  # casting the original to half would cast its rotary frequencies too
        assert torch.equal(logits(loaded), logits(model))
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.convert_ids_to_tokens(tokenizer("the x").input_ids) == ["the", "Ġ", "x"]
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")


def test_the_config_is_as_a_person_would_have_written_it(tmp_path: Path) -> None:
    convert(write(tmp_path / "m.gguf", tensors_of(tiny_llama())), tmp_path / "out")
    text = (tmp_path / "out" / "config.json").read_text()
    assert "1e-05" in text
    assert "title" not in text
    assert "quantization" not in text
    assert str(tmp_path) not in text


def test_quantised_weights_become_bfloat16(tmp_path: Path) -> None:
    model, kind = tiny_llama(), gguf.GGMLQuantizationType.Q8_0
    path = write(tmp_path / "m.gguf", tensors_of(model), quantised=kind)
    convert(path, tmp_path / "out")
    weight = AutoModelForCausalLM.from_pretrained(tmp_path / "out").model.layers[1].mlp.down_proj.weight
    original = model.model.layers[1].mlp.down_proj.weight.detach().numpy()
    expected = torch.from_numpy(gguf.dequantize(gguf.quantize(original, kind), kind)).bfloat16()
    assert weight.dtype == torch.bfloat16
    assert torch.equal(weight, expected)


def test_the_rotary_scaling_of_llama_3_is_restored(tmp_path: Path) -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    model = tiny_llama(scaling | {"original_max_position_embeddings": 8192})
    plain = 500000.0 ** -(torch.arange(0, 8, 2) / 8)
    table = {"rope_freqs.weight": (plain / model.model.rotary_emb.inv_freq).numpy()}
    convert(write(tmp_path / "m.gguf", tensors_of(model) | table), tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert loaded.config.rope_parameters["rope_type"] == "llama3"
    assert torch.equal(logits(loaded), logits(model))
    assert not torch.equal(logits(loaded), logits(tiny_llama()))


def test_scaling_that_would_be_ignored_is_refused(tmp_path: Path) -> None:
    tensors = tensors_of(tiny_llama())
    odd = {"rope_freqs.weight": np.array([1, 3, 2, 8], np.float32)}
    for number, (extra, fields) in enumerate(((odd, {}), ({}, {"scaling": gguf.RopeScalingType.YARN}))):
        path = write(tmp_path / f"{number}.gguf", tensors | extra, **fields)
        assert "silently ignore" in refusal(path, tmp_path / "out", UnsupportedModelError)


def test_what_lies_beside_the_file_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "x"}')
    convert(write(tmp_path / "m.gguf", tensors_of(tiny_llama())), tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("the").input_ids == [TOKENS.index("the")]


def test_converting_is_silent_and_leaves_transformers_as_it_was(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = logging.get_verbosity(), logging.is_progress_bar_enabled(), gguf.GGUFReader
    path = write(tmp_path / "m.gguf", tensors_of(tiny_llama()))
    capfd.readouterr()
    convert(path, tmp_path / "out")
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled(), gguf.GGUFReader) == before


# Files that cannot be converted


@pytest.mark.parametrize("content", [b"", b"GG", b"<html>", b"version https://git-lfs.github.com/spec/v1"])
def test_a_file_that_is_no_gguf(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    assert "is not a GGUF file" in refusal(tmp_path / "m.gguf", tmp_path / "out", CheckpointError)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.98])
def test_a_truncated_file(tmp_path: Path, share: float) -> None:
    path = write(tmp_path / "m.gguf", tensors_of(tiny_llama()))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    message = refusal(path, tmp_path / "out", CheckpointError)
    assert f"({path.stat().st_size} bytes)" in message
    assert not (tmp_path / "out").exists()


def test_a_version_from_the_future(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", tensors_of(tiny_llama()))
    path.write_bytes(b"GGUF\x63\0\0\0" + path.read_bytes()[8:])
    assert "version 99" in refusal(path, tmp_path / "out", CheckpointError)


def test_an_architecture_that_transformers_lacks(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", tensors_of(tiny_llama()), arch="rwkv7")
    message = refusal(path, tmp_path / "out", UnsupportedModelError)
    assert "'rwkv7'" in message
    assert "llama, " in message


def test_a_type_that_cannot_be_dequantised(tmp_path: Path) -> None:
    tensors = tensors_of(tiny_llama())
    path = write(tmp_path / "m.gguf", tensors | {"output.weight": tensors["output.weight"].astype(np.int8)})
    message = refusal(path, tmp_path / "out", UnsupportedModelError)
    assert "I8" in message
    assert "Q4_K" in message


def test_a_type_that_nobody_knows(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", {"output_norm.weight": np.ones(16, np.float32)})
    name = b"output_norm.weight"
    data = bytearray(path.read_bytes())
    data[data.rindex(name) + len(name) + 12] = 250
    path.write_bytes(data)
    message = refusal(path, tmp_path / "out", UnsupportedModelError)
    assert "250" in message
    assert "Q4_K" in message


@pytest.mark.parametrize("change", ["one too few", "one too many"])
def test_weights_are_neither_invented_nor_left_out(tmp_path: Path, change: str) -> None:
    tensors = tensors_of(tiny_llama())
    if change == "one too few":
        del tensors["blk.1.ffn_up.weight"]
    else:
        tensors["blk.1.attn_q.bias"] = np.ones(16, np.float32)
    message = refusal(write(tmp_path / "m.gguf", tensors), tmp_path / "out", UnsupportedModelError)
    assert ("mlp.up_proj" if change == "one too few" else "room for") in message


def test_one_part_of_several(tmp_path: Path) -> None:
    path = write(tmp_path / "m-00001-of-00003.gguf", tensors_of(tiny_llama()), parts=3)
    assert "--merge" in refusal(path, tmp_path / "out", UnsupportedModelError)


def test_no_tokenizer(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", tensors_of(tiny_llama()), tokenizer=False)
    assert "no tokenizer" in refusal(path, tmp_path / "out", CheckpointError)


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    path = write(tmp_path / "m.gguf", tensors_of(tiny_llama()))
    with pytest.raises(CheckpointError, match=rf"could not write into {tmp_path}/out.*No space left") as caught:
        convert(path, tmp_path / "out")
    assert caught.value.exit_code == 8


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setattr("sned.checkpoint.gguf.find_spec", lambda name: None if name == package else find_spec(name))
    message = refusal(tmp_path / "m.gguf", tmp_path / "out", MissingExtraError)
    assert "pip install 'sned[gguf]'" in message
