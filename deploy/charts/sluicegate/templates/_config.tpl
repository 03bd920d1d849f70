{{/* The parts of the worker's settings that the chart reads. */}}

{{/* Returns the text of the setting at .path in .config, or else .default. */}}
{{- define "sluicegate.setting" -}}
{{- $at := .config -}}
{{- range .path -}}
{{- if kindIs "map" $at }}{{ $at = get $at . }}{{ else }}{{ $at = "" }}{{ end -}}
{{- end -}}
{{- if or (kindIs "invalid" $at) (eq (toString $at) "") -}}
{{- .default -}}
{{- else if kindIs "float64" $at -}}
{{- int64 $at -}}
{{- else -}}
{{- $at -}}
{{- end -}}
{{- end -}}

{{- define "sluicegate.listen" -}}
{{- include "sluicegate.setting" (dict "config" .Values.config "path" (list "http" "listen") "default" "0.0.0.0:9464") -}}
{{- end -}}

{{- define "sluicegate.httpPort" -}}
{{- regexFind "[0-9]+$" (include "sluicegate.listen" .) | default "9464" -}}
{{- end -}}

{{- define "sluicegate.hasService" -}}
{{- if or .Values.service.enabled (eq .Values.workload.kind "StatefulSet") }}true{{ end -}}
{{- end -}}

{{/* Returns the address of the metrics for others. A headless Service has the pods' own port. */}}
{{- define "sluicegate.address" -}}
{{- $headless := and (eq .Values.service.type "ClusterIP") (eq .Values.service.clusterIP "None") -}}
{{- $port := $headless | ternary (include "sluicegate.httpPort" .) (int .Values.service.port | toString) -}}
{{- printf "%s.%s:%s" (include "sluicegate.fullname" .) (include "sluicegate.namespace" .) $port -}}
{{- end -}}

{{- define "sluicegate.drainSeconds" -}}
{{- $text := include "sluicegate.setting" (dict "config" .Values.config "path" (list "shutdown" "drain") "default" "25s") -}}
{{- include "sluicegate.seconds" (dict "text" $text "path" "config.shutdown.drain") -}}
{{- end -}}

{{/* Returns a property of librdkafka. */}}
{{- define "sluicegate.property" -}}
{{- include "sluicegate.setting" (dict "config" .root.Values.config "path" (list "kafka" "properties" .name) "default" .default) -}}
{{- end -}}

{{- define "sluicegate.sessionSeconds" -}}
{{- $ms := include "sluicegate.property" (dict "root" . "name" "session.timeout.ms" "default" "45000") -}}
{{- divf (float64 $ms) 1000.0 | floor | int64 -}}
{{- end -}}

{{- define "sluicegate.group" -}}
{{- include "sluicegate.setting" (dict "config" .Values.config "path" (list "kafka" "group") "default" "sluicegate") -}}
{{- end -}}

{{- define "sluicegate.brokers" -}}
{{- include "sluicegate.setting" (dict "config" .Values.config "path" (list "kafka" "brokers") "default" "localhost:9092") -}}
{{- end -}}

{{/* Returns the topics as a JSON list. */}}
{{- define "sluicegate.topics" -}}
{{- $kafka := default dict .Values.config.kafka -}}
{{- $topics := default (list "identify") $kafka.topics -}}
{{- if kindIs "string" $topics }}{{ $topics = splitList "," (nospace $topics) }}{{ end -}}
{{- toJson $topics -}}
{{- end -}}

{{/* Returns the ids of the destinations that config turns on, as a sorted JSON list. */}}
{{- define "sluicegate.enabled" -}}
{{- $ids := list -}}
{{- $destinations := default dict .Values.config.destinations -}}
{{- range keys $destinations | sortAlpha -}}
{{- $destination := default dict (get $destinations .) -}}
{{- if ne (toString (get $destination "enabled")) "false" }}{{ $ids = append $ids . }}{{ end -}}
{{- end -}}
{{- toJson $ids -}}
{{- end -}}

{{/* Returns the ids of the destinations that this release serves. */}}
{{- define "sluicegate.served" -}}
{{- if .Values.lanes.destinations -}}
{{- toJson (.Values.lanes.destinations | sortAlpha | uniq) -}}
{{- else -}}
{{- include "sluicegate.enabled" . -}}
{{- end -}}
{{- end -}}

{{/* Returns a destination's settings as JSON. They are empty if only existingConfigMap knows the destination. */}}
{{- define "sluicegate.destination" -}}
{{- toJson (default dict (get (default dict .root.Values.config.destinations) .id)) -}}
{{- end -}}

{{/* Returns the bytes that the buffers of .ids hold. */}}
{{- define "sluicegate.bufferBytes" -}}
{{- $sum := 0 -}}
{{- range .ids -}}
{{- $destination := include "sluicegate.destination" (dict "root" $.root "id" .) | fromJson -}}
{{- $text := include "sluicegate.setting" (dict "config" $destination "path" (list "buffer" "max_bytes") "default" "256MiB") -}}
{{- $bytes := include "sluicegate.bytes" (dict "text" $text "path" (printf "config.destinations.%s.buffer.max_bytes" .)) -}}
{{- $sum = add $sum (int64 $bytes) -}}
{{- end -}}
{{- $sum -}}
{{- end -}}

{{/* Returns the memory in MiB that a process with the lanes .ids needs. That is the buffers and 40%, at least the
     buffers, an eighth of them and 150 MiB. */}}
{{- define "sluicegate.neededMiB" -}}
{{- $buffers := include "sluicegate.bufferBytes" . | float64 -}}
{{- divf (maxf (mulf $buffers 1.4) (addf (mulf $buffers 1.125) 157286400.0)) 1048576.0 | ceil | int64 -}}
{{- end -}}
