#!/bin/bash
{{sbatch}}

{{start}}
