"""Shape of the nano model and its first weights."""

from itertools import combinations

import torch
from torch import Tensor

CONFIG = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "model_type": "deepseek_v4",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.57.1",
    "vocab_size": 1024,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 128,
    "qk_rope_head_dim": 64,
    "q_lora_rank": 64,
    "o_groups": 2,
    "o_lora_rank": 32,
    "moe_intermediate_size": 64,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "num_hash_layers": 1,
    "routed_scaling_factor": 1.5,
    "scoring_func": "sqrtsoftplus",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "hidden_act": "silu",
    "swiglu_limit": 10.0,
    "sliding_window": 32,
    "compress_ratios": [0, 4, 128, 4, 0],
    "index_n_heads": 4,
    "index_head_dim": 128,
    "index_topk": 16,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "hc_eps": 1e-06,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000,
    "compress_rope_theta": 160000,
    "rope_scaling": {
        "type": "yarn",
        "factor": 16,
        "original_max_position_embeddings": 1024,
        "beta_fast": 32,
        "beta_slow": 1,
    },
    "max_position_embeddings": 16384,
    "num_nextn_predict_layers": 1,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "use_cache": True,
    "expert_dtype": "fp4",
    "quantization_config": {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "scale_fmt": "ue8m0",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    },
}


class _Maker:
    """Draws first weights from one generator."""

    def __init__(self, cfg: dict, seed: int):
        self.cfg = cfg
        self.generator = torch.Generator().manual_seed(seed)
        self.params: dict[str, Tensor] = {}

    def matrix(self, name: str, *shape: int, gain: float = 1.0):
        draw = torch.randn(shape, generator=self.generator)
        self.params[name + ".weight"] = draw * gain * shape[-1] ** -0.5

    def norm(self, name: str, size: int):
        self.params[name + ".weight"] = torch.ones(size)

    def mixer(self, name: str, depth: int):
        """Near-identity mix; each sublayer reads mostly one stream, which breaks the symmetry."""
        n, d = self.cfg["hc_mult"], self.cfg["hidden_size"]
        read = torch.full((n,), -2.0)
        read[depth % n] = 2.0
        carry = (4.0 * torch.eye(n)).flatten()
        draw = torch.randn((2 + n) * n, n * d, generator=self.generator)
        self.params[name + "_fn"] = draw * 0.5 * (n * d) ** -0.5
        self.params[name + "_base"] = torch.cat([read, torch.zeros(n), carry])
        self.params[name + "_scale"] = torch.full((3,), 0.1)

    def head_mixer(self, name: str):
        n, d = self.cfg["hc_mult"], self.cfg["hidden_size"]
        draw = torch.randn(n, n * d, generator=self.generator)
        self.params[name + "_fn"] = draw * 0.5 * (n * d) ** -0.5
        self.params[name + "_base"] = torch.zeros(n)
        self.params[name + "_scale"] = torch.full((1,), 0.1)

    def compressor(self, name: str, m: int, d: int):
        width = (2 if m == 4 else 1) * d
        self.matrix(name + ".wkv", width, self.cfg["hidden_size"])
        self.matrix(name + ".wgate", width, self.cfg["hidden_size"], gain=0.1)
        self.norm(name + ".norm", d)
        self.params[name + ".ape"] = torch.zeros(m, width)

    def attention(self, p: str, m: int):
        c = self.cfg
        hidden, h, d = c["hidden_size"], c["num_attention_heads"], c["head_dim"]
        q_rank, groups, o_rank = c["q_lora_rank"], c["o_groups"], c["o_lora_rank"]
        self.matrix(p + "wq_a", q_rank, hidden)
        self.norm(p + "q_norm", q_rank)
        self.matrix(p + "wq_b", h * d, q_rank)
        self.matrix(p + "wkv", d, hidden)
        self.norm(p + "kv_norm", d)
        self.matrix(p + "wo_a", groups * o_rank, h * d // groups)
        self.matrix(p + "wo_b", hidden, groups * o_rank, gain=0.3)
        self.params[p + "attn_sink"] = torch.zeros(h)
        if m:
            self.compressor(p + "compressor", m, d)
        if m == 4:
            ih, dim = c["index_n_heads"], c["index_head_dim"]
            self.matrix(p + "indexer.wq_b", ih * dim, q_rank)
            self.matrix(p + "indexer.weights_proj", ih, hidden)
            self.compressor(p + "indexer.compressor", m, dim)

    def experts(self, p: str, hashed: bool, counts: Tensor):
        c = self.cfg
        hidden, inner, e = c["hidden_size"], c["moe_intermediate_size"], c["n_routed_experts"]
        self.matrix(p + "gate", e, hidden)
        if hashed:
            self.params[p + "gate.tid2eid"] = hash_table(counts, e, c["num_experts_per_tok"])
        else:
            self.params[p + "gate.bias"] = torch.zeros(e)
        for kind, lead in (("experts", (e,)), ("shared_experts", ())):
            self.matrix(f"{p}{kind}.w1", *lead, inner, hidden)
            self.matrix(f"{p}{kind}.w3", *lead, inner, hidden)
            self.matrix(f"{p}{kind}.w2", *lead, hidden, inner, gain=0.3)

    def layer(self, p: str, index: int, hashed: bool, counts: Tensor):
        hidden = self.cfg["hidden_size"]
        self.mixer(p + "hc_attn", 2 * index)
        self.norm(p + "attn_norm", hidden)
        self.attention(p + "attn.", self.cfg["compress_ratios"][index])
        self.mixer(p + "hc_ffn", 2 * index + 1)
        self.norm(p + "ffn_norm", hidden)
        self.experts(p + "ffn.", hashed, counts)


def hash_table(counts: Tensor, experts: int, k: int) -> Tensor:
    """Deal tokens, most frequent first, to the k-subsets of experts in turn: even load."""
    subsets = torch.tensor(list(combinations(range(experts), k)))
    rank = counts.argsort(descending=True, stable=True).argsort()
    return subsets[rank % len(subsets)]


def first_weights(cfg: dict, counts: Tensor, seed: int) -> dict[str, Tensor]:
    """All parameters by official name; `counts` [V] are token frequencies."""
    make = _Maker(cfg, seed)
    hidden, vocab, layers = cfg["hidden_size"], cfg["vocab_size"], cfg["num_hidden_layers"]
    make.matrix("embed", vocab, hidden, gain=hidden**0.5 * 0.5)
    make.matrix("head", vocab, hidden, gain=0.5)
    make.norm("norm", hidden)
    make.head_mixer("hc_head")
    for i in range(layers):
        make.layer(f"layers.{i}.", i, i < cfg["num_hash_layers"], counts)
    make.layer("mtp.0.", layers, False, counts)
    for name in ("e_proj", "h_proj"):
        make.matrix("mtp.0." + name, hidden, hidden, gain=0.7)
    for name in ("enorm", "hnorm", "norm"):
        make.norm("mtp.0." + name, hidden)
    make.head_mixer("mtp.0.hc_head")
    return make.params
