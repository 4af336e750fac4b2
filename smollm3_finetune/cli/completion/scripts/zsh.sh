#compdef smollm3
# Completion of smollm3 for zsh.
# To install it:      smollm3 completion zsh --install
# For this shell:     source <(smollm3 completion zsh)
# For every shell:    add that line to ~/.zshrc, below compinit
# Or in a directory of $fpath: smollm3 completion zsh > DIRECTORY/_smollm3

_smollm3() {
    local line kind value text width=0
    local -a values keys paths value_lines key_lines
    local answer
    answer=$(_SMOLLM3_COMPLETE=zsh_complete _SMOLLM3_LINE="${(j: :)words[1,CURRENT-1]} $PREFIX" \
        "${words[1]/#\~/$HOME}" 2>/dev/null)
    for line in "${(@f)answer}"; do
        value=${${line#*$'\t'}%%$'\t'*}
        (( ${#value} > width )) && width=${#value}
    done
    (( width > 40 )) && width=40
    for line in "${(@f)answer}"; do
        kind=${line%%$'\t'*} value=${${line#*$'\t'}%%$'\t'*} text=${line##*$'\t'}
        local shown=$value
        [[ -n $text ]] && shown="${(r:width:)value}  -- $text"
        (( ${#value} > width )) && [[ -n $text ]] && shown="$value  -- $text"
        shown=${shown[1,COLUMNS-1]}
        case $kind in
            file) [[ -n $text ]] && compset -P '*='; _files; return ;;
            dir) [[ -n $text ]] && compset -P '*='; _files -/; return ;;
            key) keys+=("$value") key_lines+=("$shown") ;;
            plain) values+=("$value") value_lines+=("$shown") ;;
        esac
    done
    (( $#values )) && compadd -l -V smollm3 -d value_lines -a values
    (( $#keys )) && compadd -l -S '' -V smollm3-keys -d key_lines -a keys
    (( $#values + $#keys ))
}

if [[ ${zsh_eval_context[-1]} == loadautofunc ]]; then
    _smollm3 "$@"
else
    compdef _smollm3 smollm3
fi
