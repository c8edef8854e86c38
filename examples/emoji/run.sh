#!/usr/bin/env bash
# The recipe of the embedded model, from data to scores: `bash examples/emoji/run.sh`, seven and a half hours on two
# CPU cores with AVX512-BF16.
# Data, runs, codes and results go into `data/`, `runs/` and `results/` of the current folder. It needs npm, and
# `pip install "uniwetok-hf[train,eval,emoji]"`. What is finished is not made again: after an interruption the same
# command goes on, with a checkpoint every ten minutes. The longest training, the finetune, takes three hours.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tokenizer=runs/emoji_uniwetok_decoder/model

python "$here/emoji_data.py" data/emoji
python "$here/faces_and_text.py" data/faces_and_text
python "$here/photographs.py" data/photographs
python "$here/train_siglip.py" --config "$here/emoji_siglip.yaml" "$here/emoji_judge.yaml"
uniwetok train tokenizer --config "$here"/emoji_uniwetok_{stage1,stage2,stage3,decoder}.yaml
for split in train validation; do
  uniwetok encode-dataset data/emoji "data/emoji_codes/$split" --split "$split" --size 128 --variants 3 --model "$tokenizer"
done
uniwetok train mllm --config "$here"/emoji_mllm_{pretrain,finetune}.yaml

uniwetok evaluate reconstruction data/emoji --sizes 128 --by style --model "$tokenizer" --output results/reconstruction
python "$here/evaluate_emoji.py" data/emoji --model runs/emoji_mllm/pipeline --judge runs/emoji_judge/model --output results/emoji
