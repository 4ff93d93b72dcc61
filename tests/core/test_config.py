import pytest
import yaml

from gan_t2i.core.config import StrictConfig, nearest, read_yaml, with_overrides
from gan_t2i.core.errors import UsageError
from gan_t2i.training.config import TrainConfig


class Inner(StrictConfig):
    rate: float = 0.5
    steps: int = 2


class Outer(StrictConfig):
    name: str = "default"
    inner: Inner = Inner()


def refusal(call, *args, **kwargs):
    """The one sentence with which `call` refuses."""
    with pytest.raises(UsageError) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_precedence_is_default_then_yaml_then_set(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("inner: {rate: 2, steps: 7}\n", encoding="utf-8")
    config = Outer.parse(with_overrides(read_yaml(path), ["inner.steps=9"]))
    assert (config.name, config.inner.rate, config.inner.steps) == ("default", 2.0, 9)


def test_set_goes_into_groups_that_are_not_there_yet_and_leaves_the_values_given(tmp_path):
    values = {"inner": {"rate": 1.0}}
    changed = with_overrides(values, ["inner.steps=3", "name=x=y", "new.group.list=[1, {a: 2}]"])
    assert changed == {"inner": {"rate": 1.0, "steps": 3}, "name": "x=y", "new": {"group": {"list": [1, {"a": 2}]}}}
    assert values == {"inner": {"rate": 1.0}}
    assert with_overrides({}, ["a=1", "a=2"]) == {"a": 2}


@pytest.mark.parametrize("text", ["2e-4", "0.0002", " 2.0E-4"])
def test_numbers_that_yaml_reads_as_strings_become_numbers(text):
    assert Outer.parse(with_overrides({}, [f"inner.rate={text}"])).inner.rate == 2e-4
    assert TrainConfig.parse(with_overrides({}, [f"optimizer.g_lr={text}"])).optimizer.g_lr == 2e-4


def test_configs_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Outer().name = "other"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"inner": {"stpes": 1}}, "unknown config key inner.stpes; did you mean steps?"),
        ({"zzzz": 1}, "unknown config key zzzz; allowed: inner, name"),
        ({"inner": {"steps": True}}, "config key inner.steps: true is not a value of this setting"),
        ({"inner": {"rate": False}}, "config key inner.rate: false is not a value of this setting"),
        (
            {"inner": {"steps": "many"}},
            "config key inner.steps = 'many': input should be a valid integer, unable to parse string as an integer",
        ),
        ({"inner": {"steps": 1.5}}, "config key inner.steps = 1.5: input should be a valid integer, got a number with a fractional part"),
        ({"inner": {"rate": float("nan")}}, "config key inner.rate = nan: input should be a finite number"),
        ({"inner": 3}, "config key inner = 3: input should be a valid dictionary or instance of Inner"),
        ({1: 2}, "config key 1 = 1: keys should be strings"),
    ],
)
def test_wrong_values_are_named_with_their_path(values, message):
    assert refusal(Outer.parse, values) == message
    assert refusal(Outer.parse, values, where="deep.down") == message.replace("config key ", "config key deep.down.")


def test_a_required_key_is_named():
    class Needy(StrictConfig):
        name: str

    assert refusal(Needy.parse, {}) == "config key name is required"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"generator": {"name": "style", "params": {"chanel_base": 3}}},
            "unknown config key generator.params.chanel_base; did you mean channel_base?",
        ),
        (
            {"discriminator": {"name": "resnet", "params": {"text_head": {"widht": 3}}}},
            "unknown config key discriminator.params.text_head.widht; did you mean width?",
        ),
        ({"generator": {"name": "stile"}}, "unknown generator 'stile'; did you mean style?"),
        ({"text_encoder": {"name": "tinny"}}, "unknown text_encoder 'tinny'; did you mean tiny?"),
        ({"generator": {"name": "style", "parms": {}}}, "unknown config key generator.parms; did you mean params?"),
        ({"penalty": {"naem": 1}}, "unknown config key penalty.naem; did you mean name?"),
        ({"resolution": 48}, "config key resolution: 48 is not a power of two from 16 to 512"),
        ({"resolution": 1024}, "config key resolution: 1024 is not a power of two from 16 to 512"),
        ({"batch": 0}, "config key batch = 0: input should be greater than or equal to 1"),
        ({"batch": 6, "accumulation": 4}, "batch 6 must be a multiple of accumulation 4"),
        ({"loss": "hing"}, "config key loss: 'hing' is not an adversarial loss; did you mean hinge?"),
        ({"kimg": float("inf")}, "config key kimg = inf: input should be a finite number"),
    ],
)
def test_a_run_says_what_is_wrong_with_its_settings(values, message):
    assert refusal(TrainConfig.parse, values) == message


@pytest.mark.parametrize(
    ("kind", "name", "params", "message"),
    [
        ("generator", "style", {"text_head": {"heads": 3}}, "config key generator.params.text_head: width 256 must be a multiple of heads 3"),
        ("generator", "style", {"w_width": 0}, "config key generator.params.w_width = 0: input should be greater than or equal to 1"),
        ("discriminator", "resnet", {"channel_base": -1}, "config key discriminator.params.channel_base = -1: input should be greater"),
        ("generator", "style", {"word_resolutions": [7]}, "config key generator.params.word_resolutions.0 = 7: input should be 4, 8, 16"),
    ],
)
def test_sizes_that_cannot_be_are_refused_before_anything_is_built(kind, name, params, message):
    assert refusal(TrainConfig.parse, {kind: {"name": name, "params": params}}).startswith(message)


def test_the_resolved_config_holds_every_default_and_reads_back_the_same():
    config = TrainConfig.parse({"generator": {"name": "style", "params": {"w_width": 32}}})
    assert config.generator.params["w_width"] == 32
    assert config.generator.params["text_head"]["layers"] >= 1
    written = yaml.safe_dump(config.model_dump(mode="json"))
    assert TrainConfig.parse(yaml.safe_load(written)) == config


@pytest.mark.parametrize("override", ["batch", "=3", "a..b=3", ".a=3", "a.=1", ""])
def test_a_malformed_set_says_how_to_write_it(override):
    assert refusal(with_overrides, {}, [override]) == f"--set {override}: write it as key.subkey=value"


@pytest.mark.parametrize("text", ["[1, 2", "{a: b: c}", "2024-13-45", "'"])
def test_a_set_whose_value_is_no_yaml_says_so(text):
    assert refusal(with_overrides, {}, [f"batch={text}"]).startswith(f"--set batch={text}: ")


def test_a_set_below_a_value_says_so():
    assert refusal(with_overrides, {"batch": 16}, ["batch.size=3"]) == "--set batch.size=3: batch holds a value, not a group of keys"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- 1\n- 2\n", "must hold a mapping of keys to values, not list"),
        (b"# nothing\n", "is empty: it must hold a mapping of keys to values"),
        (b"a: [1,\nb: }\n", "is not YAML: "),
        (b"a: !!python/object:os.system {}\n", "is not YAML: "),
        (b"a: \xff\xfe\n", "is not YAML: "),
        (b"a: 2024-13-45\n", "is not YAML: "),
    ],
)
def test_a_file_that_is_no_config_is_named(tmp_path, content, message):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    assert refusal(read_yaml, path).startswith(f"config {path} {message}")


@pytest.mark.parametrize("content", ["kimg: 1\nkimg: 2\n", "kimg: 1\ndata: {crop: fit, crop: pad}\n"])
def test_a_key_that_stands_twice_is_refused(tmp_path, content):
    path = tmp_path / "config.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=r"the key (kimg|crop) stands twice"):
        read_yaml(path)


def test_a_config_that_is_not_there_is_named(tmp_path):
    assert refusal(read_yaml, tmp_path / "none.yaml") == f"cannot read config {tmp_path / 'none.yaml'}: No such file or directory"
    assert refusal(read_yaml, tmp_path) == f"cannot read config {tmp_path}: Is a directory"


def test_nearest():
    assert nearest("colur", ["colour", "size"]) == "did you mean colour?"
    assert nearest("q", ["size", "colour"]) == "allowed: colour, size"


def test_settings_without_a_name_are_the_default_classs():
    config = TrainConfig.parse(with_overrides({}, ["generator.params.channel_base=256"]))
    assert config.generator.name == TrainConfig().generator.name
    assert config.generator.params == {**TrainConfig().generator.params, "channel_base": 256}
    with pytest.raises(UsageError, match=r"generator\.params\.chanel_base; did you mean channel_base"):
        TrainConfig.parse(with_overrides({}, ["generator.params.chanel_base=256"]))
