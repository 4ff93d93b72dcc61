import re

import pytest
import torch

from gan_t2i import registry
from gan_t2i.core.config import StrictConfig
from gan_t2i.core.errors import UsageError


@pytest.fixture
def thing(monkeypatch):
    """A registered class that is removed after the test."""
    monkeypatch.setattr(registry, "_classes", dict(registry._classes))

    @registry.register("thing", "round")
    class Thing:
        class Config(StrictConfig):
            size: int = 3
            colour: str = "red"

        def __init__(self, config, *, place):
            self.config, self.place = config, place

    return Thing


def refusal(call, *args, **kwargs):
    with pytest.raises(UsageError) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_registered_class_is_built_from_its_settings_and_its_interface(thing):
    built = registry.build("thing", "round", {"size": 5}, place="here")
    assert type(built) is thing
    assert (built.config.size, built.config.colour, built.place) == (5, "red", "here")
    assert registry.names("thing") == ["round"]
    assert registry.lookup("thing", "round") is thing


def test_a_name_is_registered_once_per_kind(thing):
    with pytest.raises(ValueError, match=r"thing 'round' is registered twice: .*Thing and .*Other"):

        @registry.register("thing", "round")
        class Other: ...

    registry.register("other thing", "round")(thing)
    assert registry.lookup("thing", "round") is thing


def test_an_unknown_name_lists_the_nearest_or_all(thing):
    assert refusal(registry.build, "thing", "rond", {}) == "unknown thing 'rond'; did you mean round?"
    registry.register("thing", "square")(thing)
    assert refusal(registry.lookup, "thing", "xyz") == "unknown thing 'xyz'; allowed: round, square"


@pytest.mark.parametrize("call", [registry.config_for, registry.build])
def test_an_unknown_or_wrong_setting_gives_its_dotted_path(thing, call):
    assert refusal(call, "thing", "round", {"colur": "blue"}) == "unknown config key thing.params.colur; did you mean colour?"
    assert refusal(call, "thing", "round", {"size": "big"}).startswith("config key thing.params.size = 'big': input should be a valid integer")


def test_a_class_without_settings_points_to_the_others(thing):
    registry.register("thing", "plain")(type("Plain", (), {"Config": type("Config", (StrictConfig,), {})}))
    assert refusal(registry.config_for, "thing", "plain", {"size": 5}) == (
        "unknown config key thing.params.size: thing 'plain' has no settings; there are also: round"
    )


def test_the_interface_may_not_be_a_setting_too(thing):
    with pytest.raises(ValueError, match=re.escape("thing 'round': size is set by the caller and may not be a config field too")):
        registry.build("thing", "round", {}, place="here", size=4)


def test_settings_of_every_registered_class_are_strict_and_have_defaults():
    import gan_t2i.models
    import gan_t2i.text  # noqa: F401 (both register their classes)

    for kind in ("generator", "discriminator", "text_encoder"):
        assert registry.names(kind)
        for name in registry.names(kind):
            config = registry.lookup(kind, name).Config
            assert issubclass(config, StrictConfig)
            assert config.model_config["extra"] == "forbid"
            assert not set(config.model_fields) & {"resolution", "text_width"}, "data and text encoder dictate these"
            registry.config_for(kind, name, {})


def test_building_draws_from_the_global_seed_alone():
    import gan_t2i.models  # noqa: F401 (registers it)

    def weights():
        torch.manual_seed(0)
        params = {"channel_max": 4, "w_width": 4, "text_head": {"width": 4, "layers": 1}}
        return registry.build("generator", "style", params, resolution=16, text_width=4, max_tokens=4).state_dict()

    one, two = weights(), weights()
    assert all(torch.equal(one[name], two[name]) for name in one)
