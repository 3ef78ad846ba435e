"""Virtual positions: in front of the tokens in every call, and off every output again."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, StaticCache

import hub
from hub.errors import AttachError
from hub.sites import find_sites
from tests.snapshots import run, shake_adapter, take_snapshot
from tests.tiny import SMALL, SPECIAL, build_tiny, make_inputs

FRONTS = ["prompt", "prefix"]
# One for each way: a prefix given to attention alone, or through the model, in one stack or two.
KINDS = ["llama", "gpt2", "bert", "opt", "bloom", "t5", "bart"]
GENERATORS = [kind for kind in KINDS if kind != "bert"]
GREEDY: dict[str, Any] = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def make(kind: str, method: str, **changes: Any) -> tuple[Any, Any]:
    """A tiny model and an adapter with values that matter."""
    model = build_tiny(kind, **changes)
    return model, shake_adapter(hub.Adapter.create(method, model, tokens=3))


def generate(model: Any, ids: torch.Tensor, mask: torch.Tensor, **options: Any) -> torch.Tensor:
    """The new tokens, greedy."""
    made = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=6, **GREEDY, **options)
    return made[:, -6:]


@pytest.mark.parametrize("method", FRONTS)
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_have_the_bare_models_shapes(kind: str, method: str) -> None:
    model, adapter = make(kind, method)
    inputs = {**make_inputs(model), "output_hidden_states": True, "output_attentions": True}
    model.set_attn_implementation("eager")

    def describe() -> dict[str, Any]:
        with torch.no_grad():
            output = model(**inputs)
        flat = {}
        for name, value in output.items():
            if isinstance(value, torch.Tensor):
                flat[name] = [tuple(value.shape)]
            elif isinstance(value, tuple):
                flat[name] = [tuple(part.shape) for part in value]
        return flat

    bare = describe()
    before = take_snapshot(model)  # transformers leaves hooks of its own for what was asked
    with hub.attach(model, adapter, trainable=False):
        assert describe() == bare
    assert take_snapshot(model) == before


@pytest.mark.parametrize("method", FRONTS)
@pytest.mark.parametrize("kind", GENERATORS)
def test_generation_is_the_same_with_and_without_a_cache(kind: str, method: str) -> None:
    model, adapter = make(kind, method)
    inputs = make_inputs(model)
    ids = inputs["input_ids"]
    if "decoder_input_ids" in inputs:
        start = model.config.decoder_start_token_id
        inputs["decoder_input_ids"] = torch.full((2, 1), start)
    with hub.attach(model, adapter, trainable=False):
        first = model.generate(
            input_ids=ids, max_new_tokens=1, output_logits=True, return_dict_in_generate=True,
            **GREEDY,
        ).logits[0]  # fmt: skip
        torch.testing.assert_close(first, run(model, **inputs)[:, -1], rtol=1e-5, atol=1e-5)
        for beams in (1, 2):
            cached, anew = (
                generate(model, ids, torch.ones_like(ids), use_cache=use, num_beams=beams)
                for use in (True, False)
            )
            assert torch.equal(cached, anew)


@pytest.mark.parametrize("method", FRONTS)
@pytest.mark.parametrize("kind", GENERATORS)
def test_left_padding_does_not_change_what_a_row_generates(kind: str, method: str) -> None:
    model, adapter = make(kind, method)
    ids = make_inputs(model)["input_ids"]
    short = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids[:1, :4]], dim=1)
    both = torch.cat([short, ids[1:]])
    with hub.attach(model, adapter, trainable=False):
        alone = generate(model, ids[:1, :4], torch.ones(1, 4, dtype=torch.long))
        together = generate(model, both, (both != 0).long())
    assert torch.equal(together[:1], alone)


@pytest.mark.parametrize("kind", ["llama", "t5", "bloom"])
def test_virtual_tokens_stand_between_the_padding_and_the_tokens(kind: str) -> None:
    model, adapter = make(kind, "prompt")
    model.set_attn_implementation("eager")
    ids = make_inputs(model)["input_ids"]
    short = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids[:1, :4]], dim=1)
    both = torch.cat([short, ids[1:]])
    more = {"output_hidden_states": True, "output_attentions": True}
    if kind == "t5":
        more["decoder_input_ids"] = torch.tensor([[0, 5, 6]])
    start = "encoder_" if kind == "t5" else ""

    def look(ids: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        rows = {k: v.expand(len(ids), -1) if torch.is_tensor(v) else v for k, v in more.items()}
        with torch.no_grad():
            out = model(input_ids=ids, attention_mask=(ids != 0).long(), **rows)
        return out[f"{start}hidden_states"], out[f"{start}attentions"]

    with hub.attach(model, adapter, trainable=False):
        alone, together = look(ids[:1, :4]), look(both)
    for one, other in zip(alone[0], together[0], strict=True):
        assert other.shape[1] == 7
        torch.testing.assert_close(one, other[:1, 3:], rtol=1e-4, atol=1e-5)
    for one, other in zip(alone[1], together[1], strict=True):
        assert other.shape[-2:] == (7, 7)
        torch.testing.assert_close(one, other[:1, :, 3:, 3:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "bloom"])
@pytest.mark.parametrize("method", FRONTS)
def test_a_forward_goes_on_from_its_own_cache(kind: str, method: str) -> None:
    model, adapter = make(kind, method)
    ids = make_inputs(model)["input_ids"]
    with hub.attach(model, adapter, trainable=False), torch.no_grad():
        whole = model(input_ids=ids).logits
        for begin in (None, DynamicCache(config=model.config)):
            first = model(input_ids=ids[:, :4], past_key_values=begin, use_cache=True)
            branch = copy.deepcopy(first.past_key_values)
            for kept in (first.past_key_values, branch):
                rest = model(input_ids=ids[:, 4:], past_key_values=kept, use_cache=True).logits
                parts = torch.cat([first.logits, rest], dim=1)
                torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", FRONTS)
@pytest.mark.parametrize("kind", GENERATORS)
def test_what_learns_generates_on_a_base_in_half_precision(kind: str, method: str) -> None:
    model = build_tiny(kind).to(torch.bfloat16)
    adapter = shake_adapter(hub.Adapter.create(method, model, tokens=3))
    ids = make_inputs(model)["input_ids"]
    mask = torch.ones_like(ids)
    with hub.attach(model, adapter, trainable=True):
        learning = generate(model, ids, mask)
    with hub.attach(model, adapter, trainable=False):
        assert torch.equal(generate(model, ids, mask), learning)


def test_a_cache_filled_without_the_prompt_is_refused() -> None:
    model, adapter = make("llama", "prompt")
    ids = make_inputs(model)["input_ids"]
    with torch.no_grad():
        kept = model(input_ids=ids, use_cache=True).past_key_values
    with (
        hub.attach(model, adapter, trainable=False),
        pytest.raises(AttachError, match="filled without the adapters' virtual tokens"),
    ):
        model(input_ids=ids[:, :1], past_key_values=kept)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("method", FRONTS)
def test_generation_goes_on_from_a_cache_with_the_new_tokens_alone(kind: str, method: str) -> None:
    model, adapter = make(kind, method)
    ids = make_inputs(model)["input_ids"]
    options = {**GREEDY, "max_new_tokens": 3, "output_logits": True}
    options["return_dict_in_generate"] = True
    with hub.attach(model, adapter, trainable=False):
        kept = DynamicCache(config=model.config)
        first = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=kept, **options
        )
        whole = torch.cat([first.sequences, ids], dim=1)
        mask = torch.ones_like(whole)
        anew = model.generate(input_ids=whole, attention_mask=mask, **options).logits
        new = whole[:, first.sequences.shape[1] - 1 :]  # the last one was made and not read yet
        for length in (11, 13, 17):
            with pytest.raises(AttachError, match="do not follow the 9 that the cache holds"):
                model.generate(
                    input_ids=whole[:, :length],
                    attention_mask=mask[:, :length],
                    past_key_values=copy.deepcopy(kept),
                    **options,
                )
        further = model.generate(
            input_ids=new, attention_mask=mask, past_key_values=kept, **options
        ).logits
    torch.testing.assert_close(further, anew, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "mamba"])
def test_a_cache_that_was_emptied_gets_the_prompt_again(kind: str) -> None:
    model, adapter = make(kind, "prompt")
    ids = make_inputs(model)["input_ids"]
    name = "cache_params" if kind == "mamba" else "past_key_values"
    with hub.attach(model, adapter, trainable=False), torch.no_grad():
        first = model(input_ids=ids, use_cache=True)
        first[name].reset()
        again = model(input_ids=ids, use_cache=True, **{name: first[name]})
    assert torch.equal(again.logits, first.logits)


@pytest.mark.parametrize("kind", ["llama", "opt"])
@pytest.mark.parametrize("method", FRONTS)
def test_a_cache_of_other_adapters_is_refused(kind: str, method: str) -> None:
    model, adapter = make(kind, method)
    other = shake_adapter(hub.Adapter.create(method, model, tokens=5))
    ids = make_inputs(model)["input_ids"]
    with hub.attach(model, adapter, trainable=False) as attachment, torch.no_grad():
        kept = model(input_ids=ids, use_cache=True).past_key_values
        with attachment.disabled(), pytest.raises(AttachError, match="that do not act now"):
            model(input_ids=ids[:, :1], past_key_values=kept)
    with (
        hub.attach(model, other, trainable=False),
        pytest.raises(AttachError, match="that do not act now"),
    ):
        model(input_ids=ids[:, :1], past_key_values=kept)


def test_what_was_encoded_without_the_prompt_is_refused() -> None:
    model, adapter = make("t5", "prompt")
    inputs = make_inputs(model)
    ids, mask = inputs.pop("input_ids"), inputs["attention_mask"]
    encode = model.get_encoder()
    with torch.no_grad():
        bare = encode(input_ids=ids, attention_mask=mask)
        with hub.attach(model, adapter, trainable=False):
            encoded = encode(input_ids=ids, attention_mask=mask)
            whole = model(input_ids=ids, **inputs).logits
            assert torch.equal(model(encoder_outputs=encoded, **inputs).logits, whole)
            with pytest.raises(AttachError, match="encode while they act"):
                model(encoder_outputs=bare, **inputs)


def test_a_cache_without_room_for_the_prompt_is_refused() -> None:
    model, adapter = make("llama", "prompt")
    ids = make_inputs(model)["input_ids"]
    kept = StaticCache(config=model.config, max_cache_len=8)
    with (
        hub.attach(model, adapter, trainable=False),
        pytest.raises(AttachError, match="holds 8 positions and needs 10"),
    ):
        model(input_ids=ids, past_key_values=kept)


@pytest.mark.parametrize("method", FRONTS)
@pytest.mark.parametrize("kind", ["mistral", "gemma2"])
def test_a_window_that_slides_has_room_for_any_length(kind: str, method: str) -> None:
    config = AutoConfig.for_model(kind, **{**SPECIAL, **SMALL["llama"], "sliding_window": 4})
    model = AutoModelForCausalLM.from_config(config).eval()
    adapter = shake_adapter(hub.Adapter.create(method, model, tokens=3))
    ids = make_inputs(model)["input_ids"]
    mask = torch.ones_like(ids)
    with hub.attach(model, adapter, trainable=False):
        anew = generate(model, ids, mask, use_cache=False)
        assert torch.equal(generate(model, ids, mask), anew)


@pytest.mark.parametrize("method", FRONTS)
def test_a_mask_that_is_not_of_rows_and_tokens_is_refused(method: str) -> None:
    model, adapter = make("t5" if method == "prefix" else "llama", method)
    inputs = make_inputs(model)
    name = "decoder_attention_mask" if method == "prefix" else "attention_mask"
    with (
        hub.attach(model, adapter, trainable=False),
        pytest.raises(AttachError, match=r"is shape \(2, 1, 7, 7\)"),
    ):
        model(**{**inputs, name: torch.ones(2, 1, 7, 7)})


@pytest.mark.parametrize("method", FRONTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_gives_the_same_gradients(kind: str, method: str, reentrant: bool) -> None:
    silent = {"dropout_rate": 0.0} if kind == "t5" else {}
    silent = {"dropout": 0.0, "attention_dropout": 0.0} if kind in ("opt", "bart") else silent
    if kind in ("gpt2", "bloom"):
        silent = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    if kind == "bert":
        silent = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model, adapter = make(kind, method, **silent)
    inputs = make_inputs(model)
    labels = inputs.get("decoder_input_ids", inputs["input_ids"])

    def differentiate() -> list[torch.Tensor]:
        model.train()
        model(**inputs, labels=labels).loss.backward()
        gradients = [p.grad.clone() for p in adapter.tensors.values()]
        for parameter in adapter.tensors.values():
            parameter.grad = None
        return gradients

    with hub.attach(model, adapter, trainable=True):
        plain = differentiate()
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
        for one, other in zip(plain, differentiate(), strict=True):
            assert one.abs().max() > 0
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_an_interrupted_forward_leaves_nothing_to_checkpointing() -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    model, adapter = make("opt", "prefix", dropout=0.0)
    ids = make_inputs(model)["input_ids"]
    model.activation_checkpointing_enable({"use_reentrant": False})
    found = []
    with hub.attach(model, adapter, trainable=True):
        for interrupted in (False, True):
            if interrupted:
                with torch.no_grad():
                    kept = model.eval()(input_ids=ids, use_cache=True).past_key_values
                    handle = model.lm_head.register_forward_hook(interrupt)
                    with pytest.raises(KeyboardInterrupt):
                        model(input_ids=ids[:, :1], past_key_values=kept)
                    handle.remove()
            model.train()(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            (parameter,) = adapter.tensors.values()
            assert parameter.grad is not None
            found.append(parameter.grad.clone())
            parameter.grad = None
    torch.testing.assert_close(found[1], found[0])


def test_labels_positions_and_types_are_widened() -> None:
    model, adapter = make("bert", "prompt")
    inputs = make_inputs(model)
    more = {
        "token_type_ids": torch.zeros_like(inputs["input_ids"]),
        "position_ids": torch.arange(7)[None].expand(2, -1),
        "labels": inputs["input_ids"],
    }
    with hub.attach(model, adapter, trainable=False), torch.no_grad():
        told = model(**inputs, **more)
        plain = model(**inputs, labels=inputs["input_ids"])
        # The loss is that of the tokens: the mean over 2 x 7 of them, from the logits given.
        by_hand = torch.nn.functional.cross_entropy(
            plain.logits.flatten(0, 1), inputs["input_ids"].flatten()
        )
    assert torch.equal(told.logits, plain.logits)
    torch.testing.assert_close(plain.loss, by_hand)


def test_routers_answer_for_the_tokens_given() -> None:
    model, adapter = make("mixtral", "prompt")
    ids = make_inputs(model)["input_ids"]
    short = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids[:1, :4]], dim=1)
    both = torch.cat([short, ids[1:]])
    with hub.attach(model, adapter, trainable=False), torch.no_grad():
        alone = model(input_ids=ids[:1, :4], output_router_logits=True).router_logits
        together = model(
            input_ids=both, attention_mask=(both != 0).long(), output_router_logits=True
        ).router_logits
    for one, other in zip(alone, together, strict=True):
        assert other.shape == (14, 4)
        torch.testing.assert_close(one, other[3:7], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 20])
def test_no_logits_of_virtual_tokens_are_kept(count: int) -> None:
    model, adapter = make("llama", "prompt")
    ids = make_inputs(model)["input_ids"]
    with hub.attach(model, adapter, trainable=False), torch.no_grad():
        whole = model(input_ids=ids).logits
        kept = model(input_ids=ids, logits_to_keep=count).logits
    torch.testing.assert_close(kept, whole[:, -count:])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_prefix_in_front_of_a_static_cache_lets_no_token_look_ahead(kind: str) -> None:
    model, adapter = make(kind, "prefix")
    ids = make_inputs(model)["input_ids"]
    with hub.attach(model, adapter, trainable=False), torch.no_grad():
        kept = StaticCache(config=model.config, max_cache_len=20)
        logits = model(input_ids=ids, past_key_values=kept).logits
        torch.testing.assert_close(logits, model(input_ids=ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_a_static_cache_gives_the_same_where_attention_alone_has_the_prefix(kind: str) -> None:
    model, adapter = make(kind, "prefix")
    ids = make_inputs(model)["input_ids"]
    padded = torch.ones_like(ids)
    padded[0, :3] = 0
    with hub.attach(model, adapter, trainable=False):
        for mask in (torch.ones_like(ids), padded):
            kept = StaticCache(config=model.config, max_cache_len=20)
            made = generate(model, ids, mask, past_key_values=kept, disable_compile=True)
            assert torch.equal(made, generate(model, ids, mask, use_cache=False))


def test_a_mask_for_each_kind_of_layer_is_refused() -> None:
    model, adapter = make("gemma2", "prompt")
    ids = make_inputs(model)["input_ids"]
    mask = torch.ones(2, 1, 7, 7).tril().bool()
    with (
        hub.attach(model, adapter, trainable=False),
        pytest.raises(AttachError, match="attention_mask is dict"),
    ):
        model(input_ids=ids, attention_mask={"full_attention": mask, "sliding_attention": mask})


def test_labels_that_were_shifted_outside_are_widened() -> None:
    model, adapter = make("llama", "prompt")
    ids = make_inputs(model)["input_ids"]
    shifted = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
    with hub.attach(model, adapter, trainable=False), torch.no_grad():
        output = model(input_ids=ids, labels=ids, shift_labels=shifted)
    expected = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), shifted.flatten())
    torch.testing.assert_close(output.loss, expected)


def test_embeddings_in_place_of_ids_give_the_same() -> None:
    for method in FRONTS:
        model, adapter = make("llama", method)
        ids = make_inputs(model)["input_ids"]
        with hub.attach(model, adapter, trainable=False), torch.no_grad():
            by_ids = model(input_ids=ids).logits
            by_vectors = model(inputs_embeds=model.get_input_embeddings()(ids)).logits
        torch.testing.assert_close(by_vectors, by_ids, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", FRONTS)
def test_classifier_reads_the_last_token_and_not_the_padding(method: str) -> None:
    model = build_tiny("llama", "classification")
    adapter = shake_adapter(hub.Adapter.create(method, model, tokens=3))
    ids = make_inputs(model)["input_ids"]
    padded = torch.cat([ids[:1, :4], torch.zeros(1, 3, dtype=torch.long)], dim=1)
    with hub.attach(model, adapter, trainable=False):
        alone = run(model, input_ids=ids[:1, :4])
        beside = run(model, input_ids=padded, attention_mask=(padded != 0).long())
    torch.testing.assert_close(alone, beside, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "bloom", "t5"])
def test_prompt_prefix_and_lora_act_together(kind: str) -> None:
    model, prompt = make(kind, "prompt")
    prefix = shake_adapter(hub.Adapter.create("prefix", model, tokens=2), seed=4)
    lora = shake_adapter(hub.Adapter.create("lora", model, r=2), seed=5)
    parts = [prompt, prefix, lora]
    outputs = [run(model)]
    for end in range(1, 4):
        with hub.attach(model, hub.Stack(*parts[:end]), trainable=False):
            outputs.append(run(model))
    for one, other in pairwise(outputs):
        assert one.shape == other.shape
        assert (one - other).abs().max() > 1e-4


def test_another_models_attention_is_left_alone() -> None:
    model, adapter = make("llama", "prefix")
    other = build_tiny("llama")
    bare = run(other)
    with hub.attach(model, adapter, trainable=False):
        assert torch.equal(run(other), bare)
        twin = copy.deepcopy(model)
        changed = run(model)
    assert torch.equal(run(twin), changed)
    assert torch.equal(run(model), bare)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_prefix_is_the_same_under_every_attention_function(implementation: str) -> None:
    model, adapter = make("llama", "prefix")
    expected = None
    with hub.attach(model, adapter, trainable=False):
        expected = run(model)
        model.set_attn_implementation(implementation)
        torch.testing.assert_close(run(model), expected, rtol=1e-5, atol=1e-5)


def test_what_attention_is_given_alone_is_not_put_through_the_model() -> None:
    ways = {}
    for kind in KINDS:
        sites = [site for site in find_sites(build_tiny(kind)) if site.kind == "attention"]
        ways[kind] = {(site.direct, site.inserted) for site in sites}
    assert ways["llama"] == ways["gpt2"] == ways["bert"] == {(True, False)}
    # Positions counted from the mask, distances that bias, an encoder beside: through the model.
    assert ways["opt"] == ways["t5"] == ways["bart"] == {(True, True)}
    assert ways["bloom"] == {(False, True)}


@pytest.mark.parametrize("method", FRONTS)
def test_compiled_model_sees_the_front_come_and_go(method: str) -> None:
    model, adapter = make("llama", method)
    ids = make_inputs(model)["input_ids"]
    compiled = torch.compile(model, backend="eager")

    def ask(asked: Any) -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = asked(input_ids=ids, use_cache=False).logits
        return logits

    bare = ask(compiled)
    with hub.attach(model, adapter, trainable=False):
        with_front = ask(compiled)
        torch.testing.assert_close(with_front, ask(model), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(with_front, bare)
    torch.testing.assert_close(ask(compiled), bare, rtol=1e-5, atol=1e-5)
