# Loaded by fish at the first Tab after `banger`; always fits the installed program.
banger completion fish | source
