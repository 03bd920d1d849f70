{{/* The names and labels of resources. */}}

{{- define "sluicegate.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{/* Returns 52 characters at most, so that the hash that Kubernetes appends to a StatefulSet's revisions still fits
     into a label. */}}
{{- define "sluicegate.fullname" -}}
{{- $name := include "sluicegate.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Returns the name of one lane's workload. A hash keeps names apart that had to be cut. Ids have underscores, names
     do not. */}}
{{- define "sluicegate.laneName" -}}
{{- $name := printf "%s-%s" (include "sluicegate.fullname" .root) (replace "_" "-" .id) -}}
{{- if gt (len $name) 52 -}}
{{- printf "%s-%s" (trunc 43 $name | trimSuffix "-") (trunc 8 (sha256sum $name)) -}}
{{- else -}}
{{- $name -}}
{{- end -}}
{{- end -}}

{{- define "sluicegate.namespace" -}}
{{- default .Release.Namespace .Values.namespaceOverride -}}
{{- end -}}

{{/* Returns the labels by which Services, monitors and policies select all of the release's workers. */}}
{{- define "sluicegate.selector" -}}
app.kubernetes.io/name: {{ include "sluicegate.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: worker
{{- end -}}

{{/* Returns the labels by which one workload selects its pods. They name the lane even if there is one workload for
     all, so that none ever selects another's pods. */}}
{{- define "sluicegate.workloadSelector" -}}
{{ include "sluicegate.selector" . }}
sluicegate/lane: {{ .workload.lane | trunc 63 | trimSuffix "_" | quote }}
{{- end -}}

{{/* Returns the labels of an object. .component names its role. */}}
{{- define "sluicegate.labels" -}}
{{- $labels := dict
  "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63)
  "app.kubernetes.io/name" (include "sluicegate.name" .root)
  "app.kubernetes.io/instance" .root.Release.Name
  "app.kubernetes.io/version" (.root.Chart.AppVersion | toString)
  "app.kubernetes.io/managed-by" .root.Release.Service
  "app.kubernetes.io/part-of" "sluicegate" -}}
{{- with .component }}{{ $_ := set $labels "app.kubernetes.io/component" . }}{{ end -}}
{{- with .root.workload }}{{ $_ := set $labels "sluicegate/lane" (.lane | trunc 63 | trimSuffix "_") }}{{ end -}}
{{- merge $labels (deepCopy (default dict .extra)) (deepCopy .root.Values.commonLabels) | toYaml -}}
{{- end -}}

{{/* Returns the metadata of an object from .root and .name, and from .namespace, .component, .labels and .annotations
     if they are given. */}}
{{- define "sluicegate.metadata" -}}
name: {{ .name }}
namespace: {{ default (include "sluicegate.namespace" .root) .namespace | quote }}
labels:
  {{- include "sluicegate.labels" (dict "root" .root "component" .component "extra" .labels) | nindent 2 }}
{{- with merge (deepCopy (default dict .annotations)) (deepCopy .root.Values.commonAnnotations) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "sluicegate.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "sluicegate.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* Returns the image, with its registry replaced if a mirror is given. */}}
{{- define "sluicegate.image" -}}
{{- $repository := .Values.image.repository -}}
{{- with .Values.global.imageRegistry -}}
{{- $host := regexFind "^([^/]*[.:][^/]*|localhost)/" $repository -}}
{{- $repository = printf "%s/%s" (trimSuffix "/" .) (trimPrefix $host $repository) -}}
{{- end -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (toString (default .Chart.AppVersion .Values.image.tag)) -}}
{{- end -}}
{{- end -}}
