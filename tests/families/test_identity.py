"""Which model is this: its family, a guess where that is unknown, and whether a plan was made for it."""

from __future__ import annotations

import pytest
from kit.compare import assert_same_logits, logits
from kit.tiny import CONFIGS, FAMILY_NAMES, family_of, fill, make_model, model_type
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from sned.errors import PlanError, UnsupportedModelError
from sned.models.families import FAMILIES
from sned.models.family import Family
from sned.models.infer import describe, infer_family, resolve_family
from sned.models.view import View
from sned.plans.budget import Budget
from sned.plans.ops import DropLayers, Keep
from sned.plans.plan import Base, Plan
from sned.runtime.method import find_method
from sned.runtime.planner import make_plan

every_family = pytest.mark.parametrize("name", FAMILY_NAMES)


def deepest(view: View, layers: int = 1) -> Plan:
    return make_plan(view, find_method("deepest"), None, Budget(layers=layers), source="here")


class TestFamily:
    def test_every_row_has_a_tiny_model(self) -> None:
        assert {model_type(name) for name in FAMILY_NAMES} == set(FAMILIES)

    @every_family
    def test_every_name_in_a_row_is_a_module_of_the_model(self, name: str) -> None:
        view, row = View(make_model(name)), family_of(name)
        for i in view.layers:
            view.branch(i, "attn").get_submodule(row.o)
            assert view.branch(i, "mlp") is not None
            assert view.contribution(i, "attn") is not None
            assert view.contribution(i, "mlp") is not None
        assert view.layers.keys() == set(range(view.model.config.num_hidden_layers))

    @every_family
    def test_a_fold_is_possible_or_there_is_a_reason(self, name: str) -> None:
        row, obstacle = family_of(name), View(make_model(name)).fold_obstacle(2)
        assert (obstacle is None) is not bool(row.mlp_post or row.experts)

    def test_a_model_without_a_plain_residual_stream_is_refused(self) -> None:
        config = CONFIG_MAPPING["opt"](**CONFIGS["opt"] | {"do_layer_norm_before": False})
        with pytest.raises(UnsupportedModelError, match="normalises after each residual addition"):
            View(AutoModelForCausalLM.from_config(config))


class TestGuess:
    @every_family
    def test_a_renamed_model_is_recognised(self, name: str) -> None:
        assert infer_family(make_model(name)) == family_of(name)

    @pytest.mark.parametrize("name", ["llama", "gpt_neox", "phi3", "opt"])
    def test_a_guess_is_shown_and_needs_consent(self, name: str) -> None:
        model = make_model(name)
        model.config.model_type = "brand_new"
        with pytest.raises(UnsupportedModelError) as caught:
            View(model)
        assert describe("brand_new", family_of(name)) in str(caught.value)
        assert "--trust-inferred" in str(caught.value)

    @every_family
    def test_a_trusted_guess_works_like_the_row(self, name: str) -> None:
        model, known = make_model(name), View(make_model(name))
        model.config.model_type = "brand_new"
        view = View(model, trust_inferred=True)
        for op in (DropLayers(layers=[1]), Keep(axis="layers.2.attn.group", units=[0])):
            op.apply(view, {})
            op.apply(known, {})
        assert_same_logits(logits(view.model), logits(known.model), exact=True)

    def test_a_shown_guess_can_be_pasted(self) -> None:
        for row in FAMILIES.values():
            assert eval("{" + describe("some", row) + "}", {"Family": Family}) == {"some": row}  # noqa: S307

    def test_nothing_like_a_decoder_is_refused(self) -> None:
        model = make_model("llama")
        model.config.model_type = "brand_new"
        for layer in model.model.layers:
            del layer.self_attn
        with pytest.raises(UnsupportedModelError, match="look like no known decoder"):
            resolve_family(model, trust_inferred=True)


class TestMatch:
    def test_a_plan_applies_to_the_same_model_wherever_it_lies(self) -> None:
        plan = deepest(View(make_model("llama")))
        view = View(make_model("llama"))
        plan.check(view)
        plan.apply(view)
        assert list(view.layers) == [0, 1, 2, 4]

    def test_every_difference_is_listed(self) -> None:
        plan = deepest(View(make_model("llama")))
        config = CONFIG_MAPPING["qwen3"](**CONFIGS["qwen3"] | {"num_hidden_layers": 3, "hidden_size": 48})
        other = View(AutoModelForCausalLM.from_config(config))
        with pytest.raises(PlanError) as caught:
            plan.check(other)
        text = str(caught.value)
        for line in (
            "model type: llama / qwen3",
            "layers: 5 / 3",
            "hidden size: 32 / 48",
            "parameters: ",
            "geometry: ",
        ):
            assert line in text
        assert "weights: " in text
        assert "made from here" in text

    def test_other_weights_are_another_model(self) -> None:
        plan = deepest(View(make_model("llama")))
        with pytest.raises(PlanError) as caught:
            plan.apply(View(make_model("llama", seed=1)))
        listed = [line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:-1]]
        assert listed == ["weights"]

    def test_one_changed_layer_is_noticed(self) -> None:
        base = Base.of(View(make_model("llama")), "")
        model = make_model("llama")
        fill(model.model.layers[3], seed=9)
        assert base.differences(Base.of(View(model), "")) != []

    @every_family
    def test_the_dtype_to_run_in_is_immaterial(self, name: str) -> None:
        stored = make_model(name).bfloat16()
        assert View(stored).fingerprint == View(make_model(name).bfloat16().float()).fingerprint

    @every_family
    def test_a_pruned_model_is_a_base_of_its_own(self, name: str) -> None:
        view = View(make_model(name))
        plan = deepest(view, layers=2)
        again = View(view.model)
        assert list(again.layers) == [0, 1, 2]
        with pytest.raises(PlanError, match="layers: 5 / 3"):
            plan.check(again)
        assert deepest(again).base.n_layers == 3
