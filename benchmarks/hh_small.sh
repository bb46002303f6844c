#!/usr/bin/env bash
# The three HH experiments at a size that a CPU trains in half an hour: a GPT-NeoX of 14M parameters drawn at random,
# then sft_hh, dpo_hh and slpo_hh on 2,000 helpful-base pairs with 352 held out.
#
#     benchmarks/hh_small.sh PAIRS.jsonl.gz TOKENIZER_FOLDER [OUTPUT_FOLDER]
set -euo pipefail
pairs=$1 tokenizer=$2 out=${3:-output/hh_small}
python=${PYTHON:-.venv/bin/python}

mkdir -p "$out/start"
cp "$tokenizer"/tokenizer.json "$out/start/"
cat > "$out/start/config.json" <<'JSON'
{"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"], "vocab_size": 50304, "hidden_size": 128,
 "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512, "hidden_act": "gelu", "rotary_pct": 0.25,
 "rotary_emb_base": 10000, "max_position_embeddings": 2048, "layer_norm_eps": 1e-05, "use_parallel_residual": true,
 "attention_bias": true, "tie_word_embeddings": false, "initializer_range": 0.02, "bos_token_id": 0, "eos_token_id": 0}
JSON
cat > "$out/start/tokenizer_config.json" <<'JSON'
{"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
JSON

common=(--config.data.path="$pairs" --config.data.split=train --config.data.eval_split= --config.data.rows=0:2000
        --config.data.eval_rows=2000:2352 --config.model.dtype=float32 --config.model.remat=none --config.batch_size=16
        --config.accumulate=1 --config.warmup_steps=15 --config.schedule=linear --config.clip_norm=1.0
        --config.optimizer.name=adamw --config.mesh.fsdp=1 --config.mesh.data=-1)
train() { $python -m slpojax.train "$@" "${common[@]}"; }

train --config=configs/sft_hh.py --config.output="$out/sft" --config.model.path="$out/start" \
      --config.model.weights=random --config.objective.name=sft.token_mean --config.learning_rate=1e-3 \
      --config.epochs=1.5 --config.eval_every=93
for name in dpo slpo; do
    train --config=configs/${name}_hh.py --config.output="$out/$name" --config.model.path="$out/sft/hf" \
          --config.reference.cache="$out/reference_cache" --config.learning_rate=1e-4 --config.epochs=1 \
          --config.eval_every=62
done
