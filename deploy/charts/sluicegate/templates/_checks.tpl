{{/* The values that the chart refuses at render time. Otherwise they would show only as pods that do not start, or as
     lost work. */}}

{{/* Refuses wrong values of the release as a whole. */}}
{{- define "sluicegate.validate" -}}
{{- if not (or .Values.config .Values.existingConfigMap) -}}
{{- fail "config is empty: give the worker's settings there, such as ci/minimal-values.yaml, or name an existingConfigMap" -}}
{{- end -}}
{{- $enabled := include "sluicegate.enabled" . | fromJsonArray -}}
{{- if not (or $enabled .Values.existingConfigMap) -}}
{{- fail "config.destinations enables none: add a block such as config.destinations.vitally" -}}
{{- end -}}
{{- include "sluicegate.validateLanes" (dict "root" . "enabled" $enabled) -}}
{{- include "sluicegate.validateConfig" . -}}
{{- include "sluicegate.validateTokens" . -}}
{{- if and .Values.secret.existingSecret .Values.secret.data -}}
{{- fail "secret.existingSecret and secret.data are both given: remove one of them" -}}
{{- end -}}
{{- if and .Values.serviceMonitor.enabled .Values.podMonitor.enabled -}}
{{- fail "serviceMonitor and podMonitor are both enabled, so everything would be counted twice: disable one of them" -}}
{{- end -}}
{{- if and .Values.serviceMonitor.enabled (not .Values.service.enabled) (ne .Values.workload.kind "StatefulSet") -}}
{{- fail "serviceMonitor needs the Service: enable service, or use podMonitor" -}}
{{- end -}}
{{- end -}}

{{- define "sluicegate.validateLanes" -}}
{{- $lanes := .root.Values.lanes -}}
{{- if not .root.Values.existingConfigMap -}}
{{- range $lanes.destinations -}}
{{- if not (has . $.enabled) -}}
{{- fail (printf "lanes.destinations: %s is not enabled in config.destinations; there are %s" . (join ", " $.enabled)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $served := include "sluicegate.served" .root | fromJsonArray -}}
{{- if and $lanes.split (not $served) -}}
{{- fail "lanes.split: name the destinations of existingConfigMap in lanes.destinations" -}}
{{- end -}}
{{- if and $lanes.overrides (not $lanes.split) -}}
{{- fail "lanes.overrides has an effect only with lanes.split: set it, or use the values themselves" -}}
{{- end -}}
{{- range keys $lanes.overrides | sortAlpha -}}
{{- $known := hasKey (default dict $.root.Values.config.destinations) . -}}
{{- if not (or $known (has . $served)) -}}
{{- fail (printf "lanes.overrides: there is no destination %s; there are %s" . (join ", " $served)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "sluicegate.validateConfig" -}}
{{- $listen := include "sluicegate.listen" . -}}
{{- if not (regexMatch ":[1-9][0-9]*$" $listen) -}}
{{- fail (printf "config.http.listen: %s: write address:port, such as 0.0.0.0:9464" $listen) -}}
{{- end -}}
{{- if regexMatch "^(127\\.|\\[::1\\]|localhost)" $listen -}}
{{- fail (printf "config.http.listen: %s: probes and Prometheus come from outside the pod: write 0.0.0.0 or [::]" $listen) -}}
{{- end -}}
{{- $drain := include "sluicegate.drainSeconds" . | int -}}
{{- $session := include "sluicegate.sessionSeconds" . | int -}}
{{- if gt $drain $session -}}
{{- fail (printf "config.shutdown.drain (%d s) is longer than session.timeout.ms (%d s), so others would own the partitions before this pod has let go: shorten it, or raise config.kafka.properties.session.timeout.ms" $drain $session) -}}
{{- end -}}
{{- if include "sluicegate.property" (dict "root" . "name" "group.instance.id" "default" "") -}}
{{- fail "config.kafka.properties.group.instance.id would be the same in all pods, which fence each other: remove it, and set workload.kind StatefulSet, which uses the pods' names" -}}
{{- end -}}
{{- /* The chart takes these from config, and would not see a variable that wins over it. */ -}}
{{- $names := keys .Values.env -}}
{{- range .Values.extraEnv }}{{ $names = append $names .name }}{{ end -}}
{{- range list "HTTP__LISTEN" "SHUTDOWN__DRAIN" "KAFKA__PROPERTIES__SESSION_TIMEOUT_MS" "KAFKA__PROPERTIES__GROUP_INSTANCE_ID" -}}
{{- $name := printf "SLUICEGATE__%s" . -}}
{{- if has $name $names }}{{ fail (printf "%s: set it in config instead, where the chart sees it" $name) }}{{ end -}}
{{- end -}}
{{- end -}}

{{/* Refuses an enabled destination without a token. The chart cannot see tokens in envFrom and existingConfigMap. */}}
{{- define "sluicegate.validateTokens" -}}
{{- $names := keys .Values.env -}}
{{- range .Values.extraEnv }}{{ $names = append $names .name }}{{ end -}}
{{- $hidden := or .Values.extraEnvFrom .Values.existingConfigMap -}}
{{- $folder := printf "%s/" (trimSuffix "/" .Values.secret.mountPath) -}}
{{- $files := keys .Values.secret.data -}}
{{- with .Values.secret.items }}{{ $files = list }}{{ range . }}{{ $files = append $files .path }}{{ end }}{{ end -}}
{{- range $id := include "sluicegate.served" . | fromJsonArray -}}
{{- $destination := include "sluicegate.destination" (dict "root" $ "id" $id) | fromJson -}}
{{- $variable := printf "SLUICEGATE__DESTINATIONS__%s__TOKEN" (upper $id) -}}
{{- $file := toString (default "" $destination.token_file) -}}
{{- $named := or (has $variable $names) (has (printf "%s_FILE" $variable) $names) -}}
{{- if not (or $file $destination.token $named $hidden) -}}
{{- fail (printf "config.destinations.%s has no token: set token_file to %s%s and put that key into the Secret" $id $folder $id) -}}
{{- end -}}
{{- if and (hasPrefix $folder $file) (not $.Values.extraVolumeMounts) -}}
{{- if not (include "sluicegate.hasSecret" $) -}}
{{- fail (printf "config.destinations.%s.token_file is %s, but there is no Secret: name it in secret.existingSecret" $id $file) -}}
{{- end -}}
{{- if and (or $.Values.secret.data $.Values.secret.items) (not (has (trimPrefix $folder $file) $files)) -}}
{{- fail (printf "config.destinations.%s.token_file is %s, but the Secret's files are %s" $id $file (join ", " (sortAlpha $files))) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Refuses wrong values of one workload. */}}
{{- define "sluicegate.validateWorkload" -}}
{{- $drain := include "sluicegate.drainSeconds" . | int -}}
{{- $grace := int .Values.terminationGracePeriodSeconds -}}
{{- if lt $grace (add $drain 10 | int) -}}
{{- fail (printf "terminationGracePeriodSeconds (%d) leaves no time for the last commit after config.shutdown.drain (%d s): set at least %d" $grace $drain (add $drain 10)) -}}
{{- end -}}
{{- if .Values.keda.enabled -}}
{{- if eq (include "sluicegate.brokers" .) "localhost:9092" -}}
{{- fail "keda asks the brokers too: set config.kafka.brokers" -}}
{{- end -}}
{{- if lt (int .Values.keda.maxReplicaCount) (int .Values.keda.minReplicaCount) -}}
{{- fail "keda.maxReplicaCount is below keda.minReplicaCount" -}}
{{- end -}}
{{- end -}}
{{- end -}}
