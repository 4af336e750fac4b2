# Completion of smollm3 for bash 4.4 or later.
# To install it:      smollm3 completion bash --install
# For this shell:     source <(smollm3 completion bash)
# For every shell:    add that line to ~/.bashrc
# With the package bash-completion, instead: smollm3 completion bash > ~/.local/share/bash-completion/completions/smollm3

_smollm3_completion() {
    local kind value text answer
    COMPREPLY=()
    answer=$(_SMOLLM3_COMPLETE=bash_complete _SMOLLM3_LINE="${COMP_LINE:0:COMP_POINT}" \
        _SMOLLM3_WORD="${COMP_WORDS[COMP_CWORD]}" COMP_WORDBREAKS="$COMP_WORDBREAKS" \
        "${1/#\~/$HOME}" 2>/dev/null)
    while IFS=$'\t' read -r kind value text; do
        case $kind in
            file) compopt -o default 2>/dev/null ;;
            dir) compopt -o dirnames 2>/dev/null ;;
            key) compopt -o nospace 2>/dev/null; COMPREPLY+=("$value") ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done <<<"$answer"
}

complete -o nosort -F _smollm3_completion smollm3 2>/dev/null || complete -F _smollm3_completion smollm3
