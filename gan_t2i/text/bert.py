"""all-MiniLM-L6-v2 and similar models without sentence-transformers, whose import takes twice as long as the rest of sampling a picture.

BERT (Devlin et al. 2019, arXiv 1810.04805, the encoder of Vaswani et al. 2017, arXiv 1706.03762) with the normalised mean of the tokens as
sentence vector. Any other model is left to the library. N captions, L tokens, E width, H heads.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

MODULES = ["Transformer", "Pooling", "Normalize"]
# Required values in config.json; a missing key has the value by default.
ARCHITECTURE = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}


class Bert(nn.Module):
    """The part of a SentenceTransformer's interface that `SentenceEncoder` uses.

    Args:
        folder: a sentence-transformers folder with the weights and the tokenizer.
        config: the values in its config.json.
        max_seq_length: longest input in tokens; longer captions are cut.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], max_seq_length: int) -> None:
        from tokenizers import Tokenizer

        super().__init__()
        self.folder, self.max_seq_length = folder, max_seq_length
        self.heads, self.layers, self.eps = config["num_attention_heads"], config["num_hidden_layers"], config["layer_norm_eps"]
        self.weights = {name: tensor.float() for name, tensor in safetensors.torch.load_file(folder / "model.safetensors").items()}
        self.tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))

    @classmethod
    def read(cls, folder: Path) -> "Bert | None":
        """The model in a sentence-transformers folder; None if it is of another kind or cannot be read, for which the library has an error."""
        try:
            modules = [(module["type"].split(".")[-1], module["path"]) for module in _json(folder / "modules.json")]
            config, sentence, pooling = (
                _json(folder / name) for name in ("config.json", "sentence_bert_config.json", f"{modules[1][1]}/config.json")
            )
            modes = {key for key, value in pooling.items() if key.startswith("pooling_mode_") and value}
            if [name for name, _ in modules] != MODULES or modules[0][1] or modes != {"pooling_mode_mean_tokens"}:
                return None
            if {**ARCHITECTURE, **config} != {**config, **ARCHITECTURE} or sentence["do_lower_case"]:
                return None
            model = cls(folder, config, sentence["max_seq_length"])
            model(model.preprocess(["a"]))
        except Exception:  # tokenizers raises nothing narrower
            return None
        return model

    def count_tokens(self, captions: Sequence[str]) -> list[int]:
        """The number of tokens of each caption, uncut, special tokens included."""
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        return [len(encoding.ids) for encoding in self.tokenizer.encode_batch(list(captions))]

    def preprocess(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """input_ids and attention_mask, [N, L]."""
        self.tokenizer.enable_truncation(self.max_seq_length)
        self.tokenizer.enable_padding()
        rows = self.tokenizer.encode_batch(list(captions))
        return {"input_ids": torch.tensor([row.ids for row in rows]), "attention_mask": torch.tensor([row.attention_mask for row in rows])}

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Output of `preprocess` -> token_embeddings [N, L, E], sentence_embedding [N, E], and the attention_mask."""
        ids, mask = features["input_ids"], features["attention_mask"]
        x = self.weights["embeddings.word_embeddings.weight"][ids] + self.weights["embeddings.token_type_embeddings.weight"][0]
        x = self._norm(x + self.weights["embeddings.position_embeddings.weight"][: ids.shape[1]], "embeddings.LayerNorm")
        is_padded = torch.compiler.is_exporting() or not mask.all()  # an exported graph cannot branch
        attended = mask.bool()[:, None, None, :].expand(-1, 1, ids.shape[1], -1) if is_padded else None
        for number in range(self.layers):
            layer = f"encoder.layer.{number}"
            x = self._norm(self._attention(x, attended, f"{layer}.attention") + x, f"{layer}.attention.output.LayerNorm")
            inner = F.gelu(self._linear(x, f"{layer}.intermediate.dense"))
            x = self._norm(self._linear(inner, f"{layer}.output.dense") + x, f"{layer}.output.LayerNorm")
        weight = mask[..., None].to(x.dtype)
        mean = (x * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1e-9)
        return {"token_embeddings": x, "sentence_embedding": F.normalize(mean, dim=1), "attention_mask": mask}

    def _attention(self, x: Tensor, mask: Tensor | None, name: str) -> Tensor:
        query, key, value = (
            self._linear(x, f"{name}.self.{part}").unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in ("query", "key", "value")
        )  # [N, H, L, E / H]
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self._linear(attended.transpose(1, 2).flatten(2), f"{name}.output.dense")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], self.eps)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
