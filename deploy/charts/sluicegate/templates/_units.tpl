{{/* Durations and sizes as the worker and Kubernetes write them. */}}

{{/* Returns .text, such as 1m 30s, in whole seconds, rounded up. The error for any other text names the setting .path. */}}
{{- define "sluicegate.seconds" -}}
{{- $path := .path -}}
{{- $units := dict
  "ns" 0.000000001 "nsec" 0.000000001 "us" 0.000001 "usec" 0.000001 "µs" 0.000001 "ms" 0.001 "msec" 0.001 "millis" 0.001
  "s" 1.0 "sec" 1.0 "secs" 1.0 "second" 1.0 "seconds" 1.0 "m" 60.0 "min" 60.0 "mins" 60.0 "minute" 60.0 "minutes" 60.0
  "h" 3600.0 "hr" 3600.0 "hrs" 3600.0 "hour" 3600.0 "hours" 3600.0 "d" 86400.0 "day" 86400.0 "days" 86400.0 -}}
{{- $total := 0.0 -}}
{{- $parts := regexFindAll "[0-9]+\\s*[a-zA-Zµ]+" .text -1 -}}
{{- if not $parts }}{{ fail (printf "%s: %s: write a number and its unit, such as 500ms, 10s or 5m" $path .text) }}{{ end -}}
{{- range $parts -}}
{{- $unit := regexFind "[a-zA-Zµ]+$" . -}}
{{- if not (hasKey $units $unit) }}{{ fail (printf "%s: %s: unknown unit %s: write ms, s, m, h or d" $path $.text $unit) }}{{ end -}}
{{- $total = addf $total (mulf (float64 (regexFind "^[0-9]+" .)) (get $units $unit | default 0.0)) -}}
{{- end -}}
{{- ceil $total | int64 -}}
{{- end -}}

{{/* Returns .text in bytes. It is the worker's 256MiB, 500kB or a number, or Kubernetes' 256Mi or 1G. */}}
{{- define "sluicegate.bytes" -}}
{{- $powers := dict "" 1.0 "k" 1e3 "m" 1e6 "g" 1e9 "t" 1e12 "ki" 1024.0 "mi" 1048576.0 "gi" 1073741824.0 "ti" 1099511627776.0 -}}
{{- $unit := regexFind "[a-zA-Z]*$" .text | lower | trimSuffix "b" -}}
{{- $number := regexFind "^[0-9]+(\\.[0-9]+)?" .text -}}
{{- if or (not $number) (not (hasKey $powers $unit)) }}{{ fail (printf "%s: %s: write bytes, or a number and its unit, such as 256MiB" .path .text) }}{{ end -}}
{{- mulf (float64 (default "0" $number)) (get $powers $unit | default 0.0) | ceil | int64 -}}
{{- end -}}
