"""A text encoder that needs no download: a small BERT with fixed random weights over the words of the training captions.

It is a fixed random map of tokens and their positions, without meanings, but G's and D's own text heads can learn meanings from it.
"""

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import safetensors.torch
import torch
from pydantic import Field, model_validator

from gan_t2i import registry
from gan_t2i.core.config import StrictConfig
from gan_t2i.core.errors import GanT2IError
from gan_t2i.core.log import quiet
from gan_t2i.text.encoder import KIND, SentenceEncoder

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@registry.register(KIND, "tiny")
class TinyEncoder(SentenceEncoder):
    """Random frozen weights from a seed; the vocabulary comes from the training captions through `interface_for`."""

    learns_from_captions = True

    class Config(StrictConfig):
        width: int = Field(64, ge=8)
        """E, a multiple of heads."""
        layers: int = Field(2, ge=1)
        heads: int = Field(4, ge=1)
        vocabulary_size: int = Field(2000, ge=16)
        """Most words and characters; rarer words are spelled by character."""
        max_tokens: int = Field(48, ge=3)
        seed: int = Field(0, ge=0)
        """Seed of the random weights."""

        @model_validator(mode="after")
        def _heads_divide_width(self) -> Self:
            if self.width % self.heads:
                raise ValueError(f"width = {self.width} must be a multiple of heads = {self.heads}")
            return self

    def __init__(self, config: Config, *, vocabulary: Sequence[str]) -> None:
        if list(vocabulary[: len(SPECIAL)]) != SPECIAL or len(set(vocabulary)) != len(vocabulary):
            raise GanT2IError(f"the vocabulary of the tiny text encoder must start with {' '.join(SPECIAL)} and name nothing twice")
        model = _random_bert(config, list(vocabulary))
        super().__init__(
            model,
            id="tiny",
            revision=None,
            weights_hash=_hash(model, vocabulary),
            source=f"tiny, fixed random weights of seed {config.seed} over {len(vocabulary):,} words and characters of the captions",
            params=config.model_dump(),
        )

    @classmethod
    def interface_for(cls, params: Mapping[str, Any], captions: Sequence[str]) -> dict[str, Any]:
        """{"vocabulary": the special tokens, the characters and the most frequent words of `captions`}."""
        return {"vocabulary": count_vocabulary(captions, cls.Config.parse(params).vocabulary_size)}


def count_vocabulary(captions: Sequence[str], size: int) -> list[str]:
    """A WordPiece vocabulary of at most `size` entries: up to half of it characters, the rest the most frequent words.

    Counted here because the WordPiece trainer of the tokenizers library breaks ties by a hash that differs from run to run.
    """
    tokenizer = word_pieces({token: i for i, token in enumerate(SPECIAL)})
    normalizer, splitter = tokenizer.normalizer, tokenizer.pre_tokenizer
    words: Counter[str] = Counter()
    for caption, times in Counter(captions).items():
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(caption)):
            words[word] += times
    pieces: Counter[str] = Counter()
    for word, times in words.items():
        for position, character in enumerate(word):
            pieces[f"##{character}" if position else character] += times
    vocabulary = dict.fromkeys(SPECIAL)
    vocabulary.update(dict.fromkeys(_most_frequent(pieces)[: (size - len(SPECIAL)) // 2]))
    for entry in [*_most_frequent(words), *_most_frequent(pieces)]:
        if len(vocabulary) >= size:
            break
        vocabulary.setdefault(entry)
    return list(vocabulary)


def _most_frequent(counts: Counter[str]) -> list[str]:
    return sorted(counts, key=lambda entry: (-counts[entry], entry))


def word_pieces(vocabulary: Mapping[str, int]) -> "Tokenizer":
    """A WordPiece tokenizer that adds [CLS] and [SEP]; `vocabulary` maps the entries of `count_vocabulary` to their ids."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece(vocab=dict(vocabulary), unk_token="[UNK]", max_input_chars_per_word=100))
    # Accents stay: stripping them would also remove the vowel signs of Indic scripts and Thai. Each Chinese character is a word.
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.BertNormalizer(strip_accents=False)])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def _random_bert(config: TinyEncoder.Config, vocabulary: list[str]) -> "SentenceTransformer":
    """BERT, mean pooling and normalisation from sentence-transformers' own modules, without a global random draw."""
    with quiet(), torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory(prefix="gan_t2i_tiny_") as folder:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.base.modules import Transformer
        from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
        from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

        settings = BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=4 * config.width,
            max_position_embeddings=config.max_tokens,
            type_vocab_size=1,
        )
        names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
        backend = word_pieces({token: i for i, token in enumerate(vocabulary)})
        fast: Any = PreTrainedTokenizerFast  # it carries no types
        tokenizer = fast(tokenizer_object=backend, model_max_length=config.max_tokens, **names)
        # The library's Transformer is built from a folder, not from a module.
        # (Its save_pretrained would leave the config out in every process but torch.distributed's first.)
        settings.save_pretrained(Path(folder))
        safetensors.torch.save_file(BertModel(settings).state_dict(), Path(folder) / "model.safetensors", metadata={"format": "pt"})
        tokenizer.save_pretrained(Path(folder))
        transformer = Transformer(folder, max_seq_length=config.max_tokens, backend="torch")
        _fill(transformer.auto_model, config.seed)
        return SentenceTransformer(modules=[transformer, Pooling(config.width, pooling_mode="mean"), Normalize()], device="cpu")


def _fill(bert: torch.nn.Module, seed: int) -> None:
    """Fill `bert` with uniform random numbers that give unit variance at every layer.

    Uniform and not normal: torch.rand gives the same bits on every CPU, and the weights' hash must not change.
    """
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(bert.named_parameters()):
            if parameter.ndim < 2:
                parameter.fill_(1.0 if name.endswith("LayerNorm.weight") else 0.0)
                continue
            # Word embeddings are larger than position embeddings, so that a token is mainly its word.
            std = 1.0 if "word_embeddings" in name else 0.5 if "embeddings" in name else parameter.shape[1] ** -0.5
            parameter.copy_((torch.rand(parameter.shape, generator=rng) - 0.5) * (12**0.5 * std))


def _hash(model: "SentenceTransformer", vocabulary: Sequence[str]) -> str:
    """sha256 of the vocabulary and of every tensor with its name."""
    digest = hashlib.sha256(json.dumps(list(vocabulary)).encode())
    transformer: Any = model[0]
    for name, tensor in sorted(transformer.auto_model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
