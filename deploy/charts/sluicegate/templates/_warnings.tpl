{{/* Combinations that work and carry a risk. NOTES.txt shows one line for each, with the remedy. */}}

{{- define "sluicegate.warnings" -}}
{{- $config := .Values.config -}}
{{- $plain := list -}}
{{- range $id, $destination := default dict $config.destinations -}}
{{- if (default dict $destination).token }}{{ $plain = append $plain (printf "config.destinations.%s.token" $id) }}{{ end -}}
{{- end -}}
{{- range list "sasl.password" "ssl.key.pem" "ssl.key.password" "ssl.keystore.password" "sasl.oauthbearer.client.secret" -}}
{{- if include "sluicegate.property" (dict "root" $ "name" . "default" "") }}{{ $plain = append $plain (printf "config.kafka.properties.%s" .) }}{{ end -}}
{{- end -}}
{{- if .Values.secret.data }}{{ $plain = append $plain "secret.data" }}{{ end -}}
{{- range $name, $_ := .Values.env -}}
{{- if regexMatch "(TOKEN|PASSWORD|SECRET)$" $name }}{{ $plain = append $plain (printf "env.%s" $name) }}{{ end -}}
{{- end -}}
{{- with $plain }}
- Secrets stand in the values ({{ join ", " . }}) and so in Helm's release history: use secret.existingSecret and files.
{{- end -}}
{{- $level := include "sluicegate.setting" (dict "config" $config "path" (list "log" "level") "default" "info") | lower -}}
{{- if regexMatch "debug|trace" $level }}
- config.log.level {{ $level }} writes user ids to the log: go back to info when you have seen enough.
{{- end -}}
{{- $drain := include "sluicegate.drainSeconds" . | int -}}
{{- $session := include "sluicegate.sessionSeconds" . | int -}}
{{- if and (gt (mul $drain 10) (mul $session 8)) (le $drain $session) }}
- config.shutdown.drain ({{ $drain }} s) is close to session.timeout.ms ({{ $session }} s): a slow end counts as a dead member. Keep it below 80%.
{{- end -}}
{{- $protocol := include "sluicegate.property" (dict "root" . "name" "group.protocol" "default" "classic") | lower -}}
{{- if and (include "sluicegate.isStatic" .) (eq $protocol "consumer") }}
- Static membership with group.protocol consumer: librdkafka's support for it is recent. Use the classic protocol, or set workload.staticMembership to false.
{{- end -}}
{{- if eq (toString .Values.image.tag) "latest" }}
- image.tag latest: pods of one release may run different versions.
{{- end -}}
{{- range $workload := include "sluicegate.workloads" . | fromJsonArray -}}
{{- $values := include "sluicegate.values" (dict "root" $ "workload" $workload) | fromJson -}}
{{- include "sluicegate.workloadWarnings" (dict "Values" $values "Release" $.Release "Chart" $.Chart "workload" $workload) -}}
{{- end -}}
{{- end -}}

{{- define "sluicegate.workloadWarnings" -}}
{{- $name := .workload.name -}}
{{- if .Values.keda.enabled }}
- {{ $name }} is scaled by lag. While the limit is the bottleneck that brings rebalances and no rows: see keda in the values.
{{- end -}}
{{- $most := include "sluicegate.mostReplicas" . | int -}}
{{- if gt $most 1 -}}
{{- range $id := .workload.ids -}}
{{- $destination := include "sluicegate.destination" (dict "root" $ "id" $id) | fromJson -}}
{{- if and (eq (toString $destination.type) "userpilot") (ne (toString (default "bulk_json" $destination.mode)) "single") }}
- {{ $name }} serves {{ $id }} in bulk with up to {{ $most }} replicas: jobs run one at a time, so they reach 80 to 88% of its limit. Give that lane one replica (lanes.split).
{{- end -}}
{{- end -}}
{{- end -}}
{{- $memory := ((include "sluicegate.resources" . | fromYaml).limits | default dict).memory -}}
{{- if not $memory }}
- {{ $name }} has no memory limit: a node that runs out of memory kills any of its pods. Set autoMemory or resources.limits.memory.
{{- else if .workload.ids -}}
{{- $needed := include "sluicegate.neededMiB" (dict "root" . "ids" .workload.ids) | int64 -}}
{{- $limit := include "sluicegate.bytes" (dict "text" (toString $memory) "path" "resources.limits.memory") | int64 -}}
{{- if lt $limit (mul $needed 1048576) }}
- {{ $name }} may use {{ $memory }} of memory, but its lanes' buffers ask for {{ $needed }}Mi: lower buffer.max_bytes or raise the limit.
{{- end -}}
{{- end -}}
{{- with .Values.podDisruptionBudget -}}
{{- $min := toString (default "" .minAvailable) -}}
{{- $zero := and (not $min) (eq (toString .maxUnavailable) "0") -}}
{{- $all := and (regexMatch "^[0-9]+$" $min) (ge (int $min) (int $most)) -}}
{{- if and .enabled (or $zero $all (eq $min "100%")) }}
- The disruption budget of {{ $name }} lets no pod go, so nodes cannot be drained: use maxUnavailable 1.
{{- end -}}
{{- end -}}
{{- end -}}
