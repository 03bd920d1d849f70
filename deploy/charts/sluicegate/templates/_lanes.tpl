{{/* The workloads, and the values of each. */}}

{{/* Returns the workloads as a JSON list of {name, lane, ids, run}. run is the value of --destinations; if it is empty,
     all enabled ones run. */}}
{{- define "sluicegate.workloads" -}}
{{- $workloads := list -}}
{{- $ids := include "sluicegate.served" . | fromJsonArray -}}
{{- if .Values.lanes.split -}}
{{- range $id := $ids -}}
{{- $name := include "sluicegate.laneName" (dict "root" $ "id" $id) -}}
{{- $workloads = append $workloads (dict "name" $name "lane" $id "ids" (list $id) "run" (list $id)) -}}
{{- end -}}
{{- else -}}
{{- $run := .Values.lanes.destinations | sortAlpha | uniq -}}
{{- $workloads = list (dict "name" (include "sluicegate.fullname" .) "lane" "all" "ids" $ids "run" $run) -}}
{{- end -}}
{{- toJson $workloads -}}
{{- end -}}

{{/* Merges .over into .base, in place. Maps are merged, and all else is replaced, also by false, 0 and null. */}}
{{- define "sluicegate.overlay" -}}
{{- range $key, $value := .over -}}
{{- if and (kindIs "map" $value) (kindIs "map" (get $.base $key)) -}}
{{- include "sluicegate.overlay" (dict "base" (get $.base $key) "over" $value) -}}
{{- else -}}
{{- $_ := set $.base $key $value -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Returns the values of one .workload of .root as JSON: those of the release, and over them the lane's overrides. */}}
{{- define "sluicegate.values" -}}
{{- $values := deepCopy .root.Values -}}
{{- if .root.Values.lanes.split -}}
{{- include "sluicegate.overlay" (dict "base" $values "over" (default dict (get .root.Values.lanes.overrides .workload.lane))) -}}
{{- end -}}
{{- toJson $values -}}
{{- end -}}

{{/* Returns the most pods that a workload can have. */}}
{{- define "sluicegate.mostReplicas" -}}
{{- if .Values.keda.enabled }}{{ .Values.keda.maxReplicaCount }}{{ else }}{{ .Values.replicaCount }}{{ end -}}
{{- end -}}

{{- define "sluicegate.isStatic" -}}
{{- if and (eq .Values.workload.kind "StatefulSet") .Values.workload.staticMembership }}true{{ end -}}
{{- end -}}

{{/* Returns the resources of a workload. autoMemory adds memory if none is given. */}}
{{- define "sluicegate.resources" -}}
{{- $resources := deepCopy .Values.resources -}}
{{- if and .Values.autoMemory .workload.ids -}}
{{- $needed := printf "%sMi" (include "sluicegate.neededMiB" (dict "root" . "ids" .workload.ids)) -}}
{{- $requests := default dict $resources.requests -}}
{{- $limits := default dict $resources.limits -}}
{{- if not $limits.memory }}{{ $_ := set $limits "memory" (default $needed $requests.memory) }}{{ end -}}
{{- if not $requests.memory }}{{ $_ := set $requests "memory" $limits.memory }}{{ end -}}
{{- $_ := set $resources "requests" $requests -}}
{{- $_ := set $resources "limits" $limits -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{/* Returns the settings on which a lane's pods depend, for the checksum. With lanes.split, those of the other
     destinations do not count. */}}
{{- define "sluicegate.configOf" -}}
{{- $config := deepCopy .Values.config -}}
{{- if and .Values.lanes.split $config.destinations -}}
{{- $_ := set $config "destinations" (pick $config.destinations .workload.lane) -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}
