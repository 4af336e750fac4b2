# Completion of smollm3 for fish.
# To install it:      smollm3 completion fish --install
# For this shell:     smollm3 completion fish | source
# By hand:            smollm3 completion fish > ~/.config/fish/completions/smollm3.fish

function __smollm3_complete
    set -l words (commandline -opc)
    set -l answer (env _SMOLLM3_COMPLETE=fish_complete _SMOLLM3_LINE=(commandline -cp | string collect) $words[1] 2>/dev/null)
    for line in $answer
        set -l part (string split \t -- $line)
        switch $part[1]
            case file
                for path in (__fish_complete_path $part[2])
                    echo -- $part[3]$path
                end
            case dir
                for path in (__fish_complete_directories $part[2])
                    echo -- $part[3]$path
                end
            case key plain
                printf '%s\t%s\n' $part[2] $part[3]
        end
    end
end

complete --command smollm3 --no-files --keep-order --arguments '(__smollm3_complete)'
