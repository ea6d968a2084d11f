# Loaded by bash-completion at the first Tab after `banger`; always fits the installed program.
eval "$(banger completion bash)"
