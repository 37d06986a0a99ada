"""The anatomy of each tiny model, written by hand from the architectures' definitions."""

from __future__ import annotations

from dataclasses import dataclass


def both(*paths: str) -> list[str]:
    return [f"{path}.{piece}" for path in paths for piece in ("weight", "bias")]


@dataclass(frozen=True)
class Expected:
    """`more_embeddings` are those beside the token embedding; matrices are named within a block."""

    token_embedding: str
    more_embeddings: list[str]
    final_norm: list[str]
    head: list[str]
    blocks: str
    attention: str
    feed_forward: str


LLAMA_ATTENTION = "self_attn.{q_proj,k_proj,v_proj,o_proj}.weight"
BERT_ATTENTION = "attention.{self.query,self.key,self.value,output.dense}.weight"
GATED = "mlp.{gate_proj,up_proj,down_proj}.weight"
EXPERTS = "mlp.{gate.weight,experts.gate_up_proj,experts.down_proj}"
BERT_FEED_FORWARD = "{intermediate,output}.dense.weight"


def _llama_like(tied: bool, attention: str = LLAMA_ATTENTION, feed_forward: str = GATED) -> Expected:
    return Expected(
        token_embedding="model.embed_tokens.weight",
        more_embeddings=[],
        final_norm=["model.norm.weight"],
        head=[] if tied else ["lm_head.weight"],
        blocks="model.layers",
        attention=attention,
        feed_forward=feed_forward,
    )


def _bert_like(prefix: str, head: list[str]) -> Expected:
    return Expected(
        token_embedding=f"{prefix}.embeddings.word_embeddings.weight",
        more_embeddings=[
            f"{prefix}.embeddings.position_embeddings.weight",
            f"{prefix}.embeddings.token_type_embeddings.weight",
            *both(f"{prefix}.embeddings.LayerNorm"),
        ],
        final_norm=[],
        head=head,
        blocks=f"{prefix}.encoder.layer",
        attention=BERT_ATTENTION,
        feed_forward=BERT_FEED_FORWARD,
    )


EXPECTED: dict[str, Expected] = {
    "llama": _llama_like(tied=False),
    "gemma": _llama_like(tied=True),
    "phi": Expected(
        token_embedding="model.embed_tokens.weight",
        more_embeddings=[],
        final_norm=both("model.final_layernorm"),
        head=both("lm_head"),
        blocks="model.layers",
        attention="self_attn.{q_proj,k_proj,v_proj,dense}.weight",
        feed_forward="mlp.{fc1,fc2}.weight",
    ),
    "minicpm3": _llama_like(
        tied=True, attention="self_attn.{q_a_proj,q_b_proj,kv_a_proj_with_mqa,kv_b_proj,o_proj}.weight"
    ),
    "mistral": _llama_like(tied=False),
    "qwen2": _llama_like(tied=False),
    "qwen3": _llama_like(tied=False),
    "gemma2": _llama_like(tied=True),
    "gemma3": _llama_like(tied=True),
    "phi3": _llama_like(
        tied=False,
        attention="self_attn.{qkv_proj,o_proj}.weight",
        feed_forward="mlp.{gate_up_proj,down_proj}.weight",
    ),
    "gpt2": Expected(
        token_embedding="transformer.wte.weight",
        more_embeddings=["transformer.wpe.weight"],
        final_norm=both("transformer.ln_f"),
        head=[],
        blocks="transformer.h",
        attention="attn.{c_attn,c_proj}.weight",
        feed_forward="mlp.{c_fc,c_proj}.weight",
    ),
    "gptj": Expected(
        token_embedding="transformer.wte.weight",
        more_embeddings=[],
        final_norm=both("transformer.ln_f"),
        head=both("lm_head"),
        blocks="transformer.h",
        attention="attn.{q_proj,k_proj,v_proj,out_proj}.weight",
        feed_forward="mlp.{fc_in,fc_out}.weight",
    ),
    "gpt_neox": Expected(
        token_embedding="gpt_neox.embed_in.weight",
        more_embeddings=[],
        final_norm=both("gpt_neox.final_layer_norm"),
        head=["lm_head.weight"],
        blocks="gpt_neox.layers",
        attention="attention.{query_key_value,dense}.weight",
        feed_forward="mlp.{dense_h_to_4h,dense_4h_to_h}.weight",
    ),
    "opt": Expected(
        token_embedding="model.decoder.embed_tokens.weight",
        more_embeddings=["model.decoder.embed_positions.weight"],
        final_norm=both("model.decoder.final_layer_norm"),
        head=[],
        blocks="model.decoder.layers",
        attention="self_attn.{q_proj,k_proj,v_proj,out_proj}.weight",
        feed_forward="{fc1,fc2}.weight",
    ),
    "olmo2": _llama_like(tied=False),
    "starcoder2": Expected(
        token_embedding="model.embed_tokens.weight",
        more_embeddings=[],
        final_norm=both("model.norm"),
        head=[],
        blocks="model.layers",
        attention=LLAMA_ATTENTION,
        feed_forward="mlp.{c_fc,c_proj}.weight",
    ),
    "mixtral": _llama_like(tied=False, feed_forward=EXPERTS),
    "qwen3_moe": _llama_like(tied=False, feed_forward=EXPERTS),
    "bert": _bert_like("bert", head=both("bert.pooler.dense", "classifier")),
    "roberta": _bert_like("roberta", head=both("classifier.dense", "classifier.out_proj")),
    "deberta-v2": Expected(
        token_embedding="deberta.embeddings.word_embeddings.weight",
        more_embeddings=[
            *both("deberta.embeddings.LayerNorm"),
            "deberta.encoder.rel_embeddings.weight",
            *both("deberta.encoder.LayerNorm"),
        ],
        final_norm=[],
        head=both("pooler.dense", "classifier"),
        blocks="deberta.encoder.layer",
        attention="attention.{self.query_proj,self.key_proj,self.value_proj,output.dense}.weight",
        feed_forward=BERT_FEED_FORWARD,
    ),
    "distilbert": Expected(
        token_embedding="distilbert.embeddings.word_embeddings.weight",
        more_embeddings=[
            "distilbert.embeddings.position_embeddings.weight",
            *both("distilbert.embeddings.LayerNorm"),
        ],
        final_norm=[],
        head=both("pre_classifier", "classifier"),
        blocks="distilbert.transformer.layer",
        attention="attention.{q_lin,k_lin,v_lin,out_lin}.weight",
        feed_forward="ffn.{lin1,lin2}.weight",
    ),
    "modernbert": Expected(
        token_embedding="model.embeddings.tok_embeddings.weight",
        more_embeddings=["model.embeddings.norm.weight"],
        final_norm=["model.final_norm.weight"],
        head=["head.dense.weight", "head.norm.weight", *both("classifier")],
        blocks="model.layers",
        attention="attn.{Wqkv,Wo}.weight",
        feed_forward="mlp.{Wi,Wo}.weight",
    ),
    # Of T5 the blocks and matrices are the encoder's; the decoder's have a test of their own.
    "t5": Expected(
        token_embedding="shared.weight",
        more_embeddings=[
            f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight" for stack in ("encoder", "decoder")
        ],
        final_norm=["encoder.final_layer_norm.weight", "decoder.final_layer_norm.weight"],
        head=[],
        blocks="encoder.block",
        attention="layer.0.SelfAttention.{q,k,v,o}.weight",
        feed_forward="layer.1.DenseReluDense.{wi,wo}.weight",
    ),
}


def spelled_out(pattern: str) -> set[str]:
    """`a.{b,c}.d` -> a.b.d and a.c.d."""
    before, _, rest = pattern.partition("{")
    choices, _, after = rest.partition("}")
    return {f"{before}{choice}{after}" for choice in choices.split(",")}
